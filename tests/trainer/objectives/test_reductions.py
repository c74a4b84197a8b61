"""Ranks and quantiles by completion against the same thing said with loops."""

from __future__ import annotations

import random

import pytest
import torch

from trainer.objectives.reductions import completion_quantile, completion_rank, completion_ranked, nearest_quantile

from .batches import DOUBLE, hand_batch


@pytest.fixture
def seed() -> int:
    value = random.randrange(2**31)
    print(f"seed {value}")
    return value


def drawn(seed: int) -> tuple[torch.Tensor, object]:
    """Return values with ties and a batch of completions of 0 to 6 tokens, some masked."""
    dice = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 7, (9,), generator=dice).tolist()
    values = torch.randint(0, 4, (sum(lengths),), generator=dice).to(DOUBLE)
    mask = (torch.rand(sum(lengths), generator=dice) < 0.7).to(DOUBLE)
    return values, hand_batch(lengths, [0.0] * 9, mask=mask)


def test_ranks_count_the_tokens_of_a_completion_that_count(seed: int) -> None:
    values, batch = drawn(seed)
    rank = completion_rank(values, batch)
    assert (rank[batch.mask == 0] == -1).all()
    for row in range(batch.sequences):
        mine = (batch.sequence == row) & (batch.mask > 0)
        assert sorted(rank[mine].tolist()) == list(range(int(mine.sum())))
        assert values[mine][rank[mine].argsort()].tolist() == values[mine].sort().values.tolist()
        first = completion_ranked(values, rank, batch, torch.zeros(batch.sequences, dtype=torch.long))
        assert first[row] == (values[mine].min() if mine.any() else 0)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.8, 1.0])
def test_quantiles_of_completions_are_those_of_torch(seed: int, q: float) -> None:
    values, batch = drawn(seed)
    found = completion_quantile(values, batch, q)
    for row in range(batch.sequences):
        mine = values[(batch.sequence == row) & (batch.mask > 0)]
        assert float(found[row]) == pytest.approx(float(mine.quantile(q)) if mine.numel() else 0)


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10])
def test_the_nearest_quantile_is_that_of_torch(seed: int, q: float, size: int) -> None:
    values = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    assert nearest_quantile(values, q) == values.quantile(q, interpolation="nearest")
