"""The whole circle on a policy that learns: sample, prepare, apply, step, control. The model is a softmax table."""

from __future__ import annotations

import random

import pytest
import torch

from trainer.batch import TokenBatch
from trainer.objectives import Objective, Observation, Step

from .batches import objective

PROMPTS, SAMPLES, LENGTH, VOCABULARY, STEPS = 8, 16, 3, 10, 250


def train(machine: Objective, seed: int) -> tuple[list[float], list[float], dict[str, float]]:
    """Return entropies, rewards and the last knobs of a run; an answer is right if its digits sum to 0 modulo 5."""
    torch.manual_seed(seed)
    logits = torch.randn(PROMPTS, LENGTH, VOCABULARY).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.1)
    state, knobs = machine.start(), {name: knob.value for name, knob in machine.knobs().items()}
    owner = torch.arange(PROMPTS * SAMPLES)
    entropies, rewards = [], []
    for step in range(STEPS):
        policy = torch.distributions.Categorical(logits=logits)  # [PROMPTS, LENGTH]
        tokens = policy.sample((SAMPLES,)).transpose(0, 1)  # [PROMPTS, SAMPLES, LENGTH]
        logprob = policy.logits[:, None].expand(-1, SAMPLES, -1, -1).gather(-1, tokens[..., None]).flatten()
        entropy = policy.entropy()[:, None].expand(-1, SAMPLES, -1).flatten()
        batch = TokenBatch(
            logprob=logprob.detach(),
            entropy=entropy.detach(),
            sequence=owner.repeat_interleave(LENGTH),
            position=torch.arange(LENGTH).repeat(len(owner)),
            group=owner // SAMPLES,
            reward=(tokens.sum(-1) % 5 == 0).float().flatten(),
            length=torch.full_like(owner, LENGTH),
        )
        now = Step(knobs=dict(knobs), step=step, total_steps=STEPS)
        outcome = machine.apply(machine.prepare(batch, now), now)
        loss = (logprob * outcome.grad_logprob).sum()
        if outcome.grad_entropy is not None:
            loss = loss + (entropy * outcome.grad_entropy).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        entropies.append(float(entropy.detach().mean()))
        rewards.append(float(batch.reward.mean()))
        seen = Observation(step, STEPS, entropies[-1], -float(batch.logprob.mean()), rewards[-1])
        state, changed = machine.control(state, seen, knobs)
        knobs |= changed
    return entropies, rewards, knobs


def late(values: list[float]) -> float:
    return sum(values[-20:]) / 20


# the cap is wide because a table without gradient clipping falls much faster than a model, and 250 steps let it settle
def test_entropy_is_held_where_plain_grpo_collapses() -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    plain, plain_rewards, _ = train(objective("grpo"), seed)
    machine = objective("entropy-target", {"type": "thermostat", "target": 0.5})
    held, held_rewards, knobs = train(machine, seed)
    assert late(plain) < 0.3 * plain[0]
    assert late(plain_rewards) > plain_rewards[0] + 0.3
    assert late(held) == pytest.approx(knobs["entropy_target"], rel=0.1)
    assert knobs["entropy_target"] == pytest.approx(0.5 * sum(held[:5]) / 5)
    assert late(held_rewards) > held_rewards[0] + 0.1  # it still learns
