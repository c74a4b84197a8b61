"""One step on a softmax table moves entropy the way each method claims, against plain GRPO on the same batch."""

from __future__ import annotations

import pytest
import torch

from trainer.batch import TokenBatch
from trainer.objectives import Objective, Step

from .batches import DOUBLE, objective

STATES, CHOICES, SAMPLES = 6, 8, 24


def table() -> torch.Tensor:
    return torch.randn(STATES, CHOICES, generator=torch.Generator().manual_seed(11), dtype=DOUBLE) * 1.5


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def sampled(logits: torch.Tensor, *, right: bool = True) -> tuple[torch.Tensor, TokenBatch]:
    """Return [STATES * SAMPLES] choices and their batch; `right` says whether the likeliest choice is the right one."""
    choices = torch.multinomial(
        logits.softmax(-1), SAMPLES, replacement=True, generator=torch.Generator().manual_seed(5)
    ).flatten()
    state = torch.arange(STATES).repeat_interleave(SAMPLES)
    logprob = logits.log_softmax(-1)[state, choices]
    count = STATES * SAMPLES
    return choices, TokenBatch(
        logprob=logprob,
        old_logprob=logprob,
        entropy=entropy_of(logits)[state],
        old_entropy=entropy_of(logits)[state],
        sequence=torch.arange(count),
        position=torch.zeros(count, dtype=torch.long),
        group=state,
        reward=((choices == logits.argmax(-1)[state]) == right).to(DOUBLE),
        length=torch.ones(count, dtype=torch.long),
    )


def change(machine: Objective, *, right: bool = True, rewarded: bool = True, **step) -> float:
    """Return how much the mean entropy moves in one small step of gradient descent, per unit of rate."""
    rate = 1e-3
    logits = table().requires_grad_()
    choices, batch = sampled(logits.detach(), right=right)
    batch = batch if rewarded else batch.replace(reward=torch.zeros_like(batch.reward))
    now = Step(total_steps=100, **step)
    outcome = machine.apply(machine.prepare(batch, now), now)
    state = batch.group
    surrogate = (logits.log_softmax(-1)[state, choices] * outcome.grad_logprob).sum()
    if outcome.grad_entropy is not None:
        surrogate = surrogate + (entropy_of(logits)[state] * outcome.grad_entropy).sum()
    (slope,) = torch.autograd.grad(surrogate, logits)
    moved = logits.detach() - rate * slope
    return float((entropy_of(moved).mean() - entropy_of(logits.detach()).mean()) / rate)


PLAIN = ["grpo", "dapo", "dr-grpo", "top-entropy-mask", "clip-cov", "kl-cov", "aepo", "scope-rl"]


@pytest.mark.parametrize("preset", PLAIN)
def test_rewarding_the_likeliest_choice_costs_entropy(preset: str) -> None:
    assert change(objective(preset)) < 0


def test_the_bonus_raises_entropy_and_its_negative_lowers_it() -> None:
    up, down = (objective("entropy-bonus", {"type": "entropy_bonus", "coefficient": sign * 0.3}) for sign in (1, -1))
    assert change(up) > change(objective("grpo")) > change(down)
    assert change(up, rewarded=False) > 0 > change(down, rewarded=False)


def test_an_enabled_adaptive_bonus_and_a_target_coefficient_act_like_the_bonus() -> None:
    bonus = change(objective("entropy-bonus", {"type": "entropy_bonus", "coefficient": 0.05}))
    enabled = {"entropy_coefficient": 0.05, "entropy_enabled": 1.0}
    assert change(objective("skywork-adaptive"), knobs=enabled) == pytest.approx(bonus)
    assert change(objective("entropy-target"), knobs={"entropy_coefficient": 0.05}) == pytest.approx(bonus)


def test_clip_cov_spares_entropy() -> None:
    part = {"type": "clip_cov", "share": 0.2, "lower": 0.05, "upper": 1000.0}
    assert change(objective("clip-cov")) < change(objective("clip-cov", part)) + 1e-12


def test_fewer_tokens_cost_less_entropy_under_the_paper_form_of_the_mask() -> None:
    assert change(objective("grpo")) < change(objective("top-entropy-mask", {"type": "top_entropy", "share": 0.2})) < 0


def test_entrocraft_lowers_entropy_above_its_band_and_raises_it_below() -> None:
    level = float(entropy_of(table()).mean())

    def shifted(by: float, *, right: bool) -> float:
        edges = {"low_start": level + by, "high_start": level + by + 0.1, "low_end": 0.0, "high_end": 0.1}
        return change(objective("entrocraft", {"type": "entrocraft", **edges}), right=right)

    assert shifted(-0.5, right=True) < 0  # likely choices that were right grow
    assert shifted(+0.3, right=False) > 0  # likely choices that were wrong shrink
