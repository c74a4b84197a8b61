"""Softmax distributions on a grid of (probability of the sampled token, entropy): the ground of an objective's picture.

A distribution gives its first entry p; the others share the rest in a geometric series whose decay is solved for the
entropy. So every statistic of a token, moments included, belongs to one true distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

VOCABULARY = 2048
COLUMNS, ROWS = 24, 16  # probabilities, entropies
REACH = 4.6  # of log(p / (1 - p)) to both sides: p from 0.01 to 0.99
LIMIT = 3.0  # nats; the rows are the bins of the published entropy scale
HALVINGS = 60

PROBABILITIES: tuple[float, ...] = tuple(
    1 / (1 + math.exp(REACH - 2 * REACH * column / (COLUMNS - 1))) for column in range(COLUMNS)
)
ENTROPIES: tuple[float, ...] = tuple(LIMIT * ((row + 0.5) / ROWS) ** 2 for row in range(ROWS))


@dataclass(frozen=True)
class Grid:
    """The K pairs that some distribution has: (column, row) of each, and its log-probabilities over the vocabulary."""

    column: Tensor  # [K] int64
    row: Tensor  # [K] int64
    logp: Tensor  # [K, V] float64, sampled token first


@lru_cache(maxsize=1)
def grid() -> Grid:
    """Return every (probability, entropy) of the grid that a distribution over the vocabulary can have.

    Entropy is at least that of two tokens and at most that of an even rest; outside lies no distribution.
    """
    pairs = [
        (column, row, p, rest)
        for column, p in enumerate(PROBABILITIES)
        for row, entropy in enumerate(ENTROPIES)
        if 0 < (rest := (entropy - _coin(p)) / (1 - p)) < math.log(VOCABULARY - 1)
    ]
    columns, rows, probabilities, rests = zip(*pairs, strict=True)
    p = torch.tensor(probabilities, dtype=torch.float64)
    tail = geometric(torch.tensor(rests, dtype=torch.float64))
    logp = torch.cat([p.log()[:, None], torch.log1p(-p)[:, None] + tail], 1)
    return Grid(torch.tensor(columns), torch.tensor(rows), logp)


def geometric(entropy: Tensor) -> Tensor:
    """Return log-probabilities of geometric series over V - 1 entries with these entropies, [K, V - 1]."""
    places = torch.arange(VOCABULARY - 1, dtype=torch.float64)
    low, high = torch.full_like(entropy, -12.0), torch.full_like(entropy, 6.0)  # log of the decay
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = entropy_of(_series(middle, places)) > entropy  # decay faster
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return _series((low + high) / 2, places)


def moved(logp: Tensor, log_ratio: float) -> Tensor:
    """Return the distributions from which `log_ratio` more on the sampled token leads to these, [K, V].

    The others keep their shares of the rest. NaN where no distribution is that far away.
    """
    before = logp[:, :1] - log_ratio
    rest = torch.log1p(-before.exp()) - torch.log1p(-logp[:, :1].exp())
    return torch.where(before < 0, torch.cat([before, logp[:, 1:] + rest], 1), torch.nan)


def entropy_of(logp: Tensor) -> Tensor:
    """Return the entropy of each row in nats."""
    return -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)


def _series(log_decay: Tensor, places: Tensor) -> Tensor:
    return torch.log_softmax(-log_decay.exp()[:, None] * places, -1)


def _coin(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log1p(-p)
