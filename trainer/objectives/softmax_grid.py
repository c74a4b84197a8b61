"""Softmax distributions on a grid of (probability, entropy) or (ratio, probability): the ground of a picture.

A distribution gives its first entry p; the others share the rest in a geometric series whose decay is solved for the
entropy. So every statistic of a token, moments included, belongs to one true distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

VOCABULARY = 1024
COLUMNS, ROWS = 24, 16
REACH = 4.6  # of log(p / (1 - p)) to both sides: p from 0.01 to 0.99
LIMIT = 3.0  # nats; the rows are the bins of the published entropy scale
FAR = math.log(2)  # nats of log ratio to both sides: from half to twice as likely
ALTERNATIVES = 2.0  # nats of entropy among the other tokens where only the probability is asked for
HALVINGS = 60


@dataclass(frozen=True)
class Axis:
    """One side of a grid: its levels, the transform under which they are evenly spaced, and the labels to draw."""

    title: str
    values: tuple[float, ...]
    scale: Literal["logit", "root", "log"]
    ticks: tuple[float, ...]


@dataclass(frozen=True)
class Grid:
    """The K fields that some distribution has: their place, their log-probabilities, how far each has moved.

    The policy that drew the token gave it exp(-log_ratio) times the probability it has now.
    """

    across: Axis
    up: Axis
    column: Tensor  # [K] int64
    row: Tensor  # [K] int64
    logp: Tensor  # [K, V] float64, sampled token first
    log_ratio: Tensor  # [K] float64


def _probabilities(count: int) -> tuple[float, ...]:
    return tuple(1 / (1 + math.exp(REACH - 2 * REACH * index / (count - 1))) for index in range(count))


TICKS = (0.01, 0.1, 0.5, 0.9, 0.99)
PROBABILITY = Axis("probability", _probabilities(COLUMNS), "logit", TICKS)
PROBABILITY_UP = Axis("probability", _probabilities(ROWS), "logit", TICKS)
ENTROPY = Axis(
    "entropy, nats", tuple(LIMIT * ((row + 0.5) / ROWS) ** 2 for row in range(ROWS)), "root", (0.1, 0.5, 1, 2, 3)
)
RATIO = Axis(
    "ratio of the probability to that when drawn",
    tuple(math.exp(FAR * (2 * column / (COLUMNS - 1) - 1)) for column in range(COLUMNS)),
    "log",
    (0.5, 0.8, 1, 1.25, 2),
)


@lru_cache(maxsize=1)
def _by_entropy() -> Grid:
    pairs = [
        (column, row, p, rest)
        for column, p in enumerate(PROBABILITY.values)
        for row, entropy in enumerate(ENTROPY.values)
        if 0 < (rest := (entropy - _coin(p)) / (1 - p)) < math.log(VOCABULARY - 1)
    ]
    return _grid(PROBABILITY, ENTROPY, pairs)


@lru_cache(maxsize=1)
def _by_ratio() -> Grid:
    pairs = [(column, row, p, ALTERNATIVES) for column in range(COLUMNS) for row, p in enumerate(PROBABILITY_UP.values)]
    ground = _grid(RATIO, PROBABILITY_UP, pairs)
    far = torch.tensor(RATIO.values, dtype=torch.float64).log()[ground.column]
    return _reachable(replace(ground, log_ratio=far))


def by_entropy(log_ratio: float = 0.0) -> Grid:
    """Return every (probability, entropy) that a distribution over the vocabulary can have, moved by `log_ratio` nats.

    Entropy is at least that of two tokens and at most that of an even rest; outside lies no distribution.
    """
    ground = _by_entropy()
    return _reachable(replace(ground, log_ratio=torch.full_like(ground.log_ratio, log_ratio)))


def by_ratio() -> Grid:
    """Return every (ratio, probability) that two distributions can have; the other tokens have a fixed spread."""
    return _by_ratio()


def _grid(across: Axis, up: Axis, pairs: list[tuple[int, int, float, float]]) -> Grid:
    """Return the grid of (column, row, probability, entropy of the rest)."""
    columns, rows, probabilities, rests = zip(*pairs, strict=True)
    p = torch.tensor(probabilities, dtype=torch.float64)
    tail = geometric(torch.tensor(rests, dtype=torch.float64))
    logp = torch.cat([p.log()[:, None], torch.log1p(-p)[:, None] + tail], 1)
    return Grid(across, up, torch.tensor(columns), torch.tensor(rows), logp, torch.zeros_like(p))


def _reachable(ground: Grid) -> Grid:
    """Return the fields whose token can have moved that far."""
    keep = ground.logp[:, 0] < ground.log_ratio
    kept = {name: getattr(ground, name)[keep] for name in ("column", "row", "logp", "log_ratio")}
    return replace(ground, **kept)


def geometric(entropy: Tensor) -> Tensor:
    """Return log-probabilities of geometric series over V - 1 entries with these entropies, [K, V - 1]."""
    places = torch.arange(VOCABULARY - 1, dtype=torch.float64)
    low, high = torch.full_like(entropy, -12.0), torch.full_like(entropy, 6.0)  # log of the decay
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = entropy_of(_series(middle, places)) > entropy  # decay faster
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return _series((low + high) / 2, places)


def before(ground: Grid) -> Tensor:
    """Return the log-probabilities from which each field's token has moved, [K, V]; the others keep their shares."""
    drawn = (ground.logp[:, 0] - ground.log_ratio)[:, None]
    rest = torch.log1p(-drawn.exp()) - torch.log1p(-ground.logp[:, :1].exp())
    return torch.cat([drawn, ground.logp[:, 1:] + rest], 1)


def entropy_of(logp: Tensor) -> Tensor:
    """Return the entropy of each row in nats."""
    return -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)


def _series(log_decay: Tensor, places: Tensor) -> Tensor:
    return torch.log_softmax(-log_decay.exp()[:, None] * places, -1)


def _coin(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log1p(-p)
