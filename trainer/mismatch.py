"""How far what generates is from what is trained, as log-probs of the same tokens by both tell.

delta = trainer's log-prob less engine's, both of the raw policy at the training temperature, in nats: rounding, other
kernels and, where rollouts are drawn ahead, the updates in between. What modifiers and truncation do on purpose is not
in it; `drift` measures that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from trainer.rollout.base import Generation
from trainer.stream import Silent

LARGEST = 20.0  # nats; keeps exp finite
TOKEN_CAP, COMPLETION_CAP = 2.0, 3.0  # where verl cuts token weights off, and TRL masks completions, by default

# Mean |delta| in nats above which completions hardly come from the policy: float32 engines were seen at 1e-6; in
# bfloat16 vLLM is at 0.011 with Qwen3-4B (vime #64) and 0.03 root mean square with Qwen2.5-0.5B (Fast-LLM #525).
LIMITS = {"float32": 0.01, "bfloat16": 0.1}


def mismatch(engine: Tensor, trainer: Tensor, sequence: Tensor) -> dict[str, float]:
    """Return the figures of tokens whose log-probs both know, [N] each; none where there is no such token."""
    known = torch.isfinite(engine) & torch.isfinite(trainer)
    engine, trainer, sequence = engine[known].double(), trainer[known].double(), sequence[known]
    if not len(engine):
        return {}
    delta = trainer - engine
    ratio = delta.clamp(-LARGEST, LARGEST).exp()
    completions, place = torch.unique(sequence, return_inverse=True)
    whole = torch.zeros(len(completions), dtype=delta.dtype).index_add(0, place, delta)
    return {
        "mismatch/mean": float(delta.mean()),
        "mismatch/mean_abs": float(delta.abs().mean()),
        "mismatch/k3": float((ratio - 1 - delta.clamp(-LARGEST, LARGEST)).mean()),
        "mismatch/max_prob": float((trainer.exp() - engine.exp()).abs().max()),
        "mismatch/ess": float(ratio.mean().square() / ratio.square().mean()),
        "mismatch/clipped": float((ratio > TOKEN_CAP).double().mean()),
        "mismatch/completions_clipped": float((whole > math.log(COMPLETION_CAP)).double().mean()),
        "mismatch/perplexity_trainer": float((-trainer.mean()).exp()),
        "mismatch/perplexity_engine": float((-engine.mean()).exp()),
    }


def drift(generations: Iterable[Generation]) -> tuple[float, int]:
    """Return the sum of behaviour less policy log-prob over tokens not drawn plainly, nats, and how many there are.

    The mean estimates the divergence of what was drawn from, from the policy.
    """
    bent = [one for one in generations if one.behaviour]
    total = math.fsum(math.fsum(one.behaviour) - math.fsum(one.logprob) for one in bent)
    return total, sum(len(one.ids) for one in bent)


class MismatchAlert:
    """Tells people once when engine and trainer part, and again when they part anew."""

    def __init__(self, stream: Silent, dtype: str, *, stale: bool) -> None:
        """`stale`: rollouts are drawn ahead, so the figures hold the updates in between and prove nothing."""
        self.stream, self.limit, self.stale = stream, LIMITS[dtype], stale
        self.alerted = False

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at a step's figures; a step without them changes nothing."""
        mean = metrics.get("mismatch/mean_abs")
        if mean is None or self.stale:
            return
        wrong = mean > self.limit
        if wrong and not self.alerted:
            self.stream.emit(
                "alert",
                step,
                code="mismatch",
                message=f"log-probs of the sampled tokens differ by {mean:.3g} nats on average between engine and "
                f"trainer (limit {self.limit:g}): completions hardly come from the policy under training; choose hf "
                "for sampling.engine, or correct for it (correction in the objective's surrogate)",
            )
        self.alerted = wrong
