"""How far an engine is from the trainer."""

from __future__ import annotations

import torch

from trainer.policy import Policy, Trajectory
from trainer.rollout import Generation, GenRequest


def furthest(policy: Policy, asked: list[GenRequest], found: list[Generation]) -> float:
    """Return how far log-probs and entropies are from the trainer's own, nats, at most."""
    worst = 0.0
    for one, got in zip(asked, found, strict=True):
        want = policy.score([Trajectory(one.prompt_ids, tuple(got.ids))], one.sampler.temperature or 1.0)
        worst = max(worst, float((torch.tensor(got.logprob) - want["logprob"]).abs().max()))
        worst = max(worst, float((torch.tensor(got.entropy) - want["entropy"]).abs().max()))
    return worst
