"""What must not matter: the order of completions; and what must never happen: a number that is not finite."""

from __future__ import annotations

import contextlib
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer.batch import TokenBatch
from trainer.objectives import PRESETS, Objective, ObjectiveConfig, Step
from trainer.statistics import STATISTICS

from .batches import DOUBLE, hand_batch, objective, random_batch, rare

# Clip-Cov (part of SPEAR) draws at random, AEPO replaces the *first* rows: order is part of their definition
ORDERED = {"clip-cov", "spear", "spear-replay", "aepo"}
EVERYTHING = (
    {"type": "overlong_filter"},
    {"type": "zero_variance_filter"},
    {"type": "kl_penalty"},
    {"type": "entropy_bonus", "coefficient": 0.1},
)
TOKEN_FIELDS = (
    "logprob", "old_logprob", "engine_logprob", "ref_logprob", "entropy", "old_entropy", "position", "sum_p2",
    "sum_p2_logp",
)  # fmt: skip


def permuted(batch: TokenBatch, order: list[int]) -> tuple[TokenBatch, torch.Tensor]:
    """Return the batch with its completions in another order, and where each token came from."""
    tokens = torch.cat([torch.nonzero(batch.sequence == row).squeeze(1) for row in order])
    place = torch.empty(len(order), dtype=torch.long)
    place[torch.tensor(order)] = torch.arange(len(order))
    fields = {name: getattr(batch, name)[tokens] for name in TOKEN_FIELDS}
    rows = {name: getattr(batch, name)[order] for name in ("group", "reward", "length", "truncated", "auxiliary")}
    extra = {
        name: value[tokens if STATISTICS[name].domain == "token" else order] for name, value in batch.extra.items()
    }
    return batch.replace(**fields, **rows, extra=extra, sequence=place[batch.sequence[tokens]]), tokens


def with_everything(preset: str) -> Objective:
    """Return the preset with every common part added that it goes together with."""
    parts: list[dict] = []
    for part in EVERYTHING:
        with contextlib.suppress(ValidationError):
            objective(preset, *parts, part)
            parts.append(part)
    return objective(preset, *parts)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in ORDERED])
def test_the_order_of_completions_does_not_matter(preset: str) -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    batch = random_batch(torch.Generator().manual_seed(seed))
    order = torch.randperm(batch.sequences, generator=torch.Generator().manual_seed(seed)).tolist()
    moved, tokens = permuted(batch, order)
    machine = with_everything(preset)
    found, expected = (
        machine.apply(machine.prepare(each, now := Step(max_completion_tokens=6, total_steps=10)), now)
        for each in (moved, batch)
    )
    torch.testing.assert_close(found.loss, expected.loss)
    assert (found.grad_entropy is None) == (expected.grad_entropy is None)
    names = ["grad_logprob", "advantage", "mask", "weight"]
    for name, value in found.grad_extra.items():
        domain = STATISTICS[name].domain
        moved_back = expected.grad_extra[name][tokens if domain == "token" else order]
        torch.testing.assert_close(value, moved_back, msg=name)
    for name in names if found.grad_entropy is None else [*names, "grad_entropy"]:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name)[tokens], msg=name)


VALUES = st.floats(-30, 0, width=32)


@st.composite
def batches(draw) -> TokenBatch:
    """Draw a batch as degenerate as they come: few tokens, equal or unusable rewards, everything masked."""
    lengths = draw(st.lists(st.integers(0, 3), max_size=5))
    count, tokens = len(lengths), sum(lengths)

    def column(values) -> torch.Tensor:
        return torch.tensor(draw(st.lists(values, min_size=tokens, max_size=tokens)), dtype=DOUBLE)

    def row(values) -> list:
        return draw(st.lists(values, min_size=count, max_size=count))

    return hand_batch(
        lengths,
        row(st.sampled_from([0.0, 1.0, 1.0, 1e6, math.nan])),
        row(st.integers(0, 2)),
        logprob=column(VALUES),
        old_logprob=column(VALUES),
        engine_logprob=column(st.one_of(VALUES, st.just(math.nan), st.just(-math.inf))),
        ref_logprob=column(VALUES),
        entropy=-column(st.floats(-11, 0)),
        old_entropy=-column(st.floats(-11, 0)),
        sum_p2=column(st.floats(0, 1)),
        sum_p2_logp=-column(st.floats(0, 5)),
        extra=rare(torch.Generator().manual_seed(draw(st.integers(0, 2**31))), tokens, count),
        mask=column(st.sampled_from([0.0, 1.0])),
        valid=torch.tensor(row(st.booleans()), dtype=torch.bool),
        truncated=torch.tensor(row(st.booleans()), dtype=torch.bool),
        auxiliary=torch.tensor(row(st.booleans()), dtype=torch.bool),
    )


CORRECTED = {"type": "ppo_clip", "correction": "token"}
MACHINES: dict[str, Objective] = {
    **{name: Objective(ObjectiveConfig(preset=name)) for name in PRESETS},
    "all at once": objective("grpo", *EVERYTHING, CORRECTED, {"type": "soft_overlong"}, {"type": "top_entropy"}),
    "by completion": objective("grpo", {"type": "seq_mean_token_mean"}, {"type": "group_norm", "std": "batch"}),
    "by sum": objective("grpo", {"type": "seq_mean_token_sum"}, {"type": "top_entropy", "removal": "drop"}),
    "released": objective("entrocraft", {"type": "entrocraft", "variant": "released"}),
}


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=20, deadline=None)
@given(batch=batches())
def test_degenerate_batches_give_finite_numbers(name: str, batch: TokenBatch) -> None:
    machine = MACHINES[name]
    now = Step(max_completion_tokens=3, total_steps=5)
    prepared = machine.prepare(batch, now)
    outcome = machine.apply(prepared, now)
    for found in (outcome.loss, outcome.grad_logprob, outcome.weight, outcome.advantage, outcome.mask):
        assert torch.isfinite(found).all()
    for name, gradient in outcome.grad_extra.items():
        assert torch.isfinite(gradient).all(), name
    assert outcome.grad_entropy is None or torch.isfinite(outcome.grad_entropy).all()
    assert all(math.isfinite(value) for value in outcome.metrics.values())
    unusable = ~batch.per_token(batch.valid & torch.isfinite(batch.reward))
    assert not outcome.grad_logprob[unusable].any()
    assert not outcome.advantage.requires_grad
