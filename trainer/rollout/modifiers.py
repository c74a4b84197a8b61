"""Modifiers: declared ways to bend the distribution a token is drawn from. No torch; the maths is in bend.py.

Each reads the logits z of one token divided by the request's temperature, p = softmax(z), and gives other logits. The
log-prob and entropy that a Generation reports are those of p, before any modifier.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdaptiveTemperature:
    """HAPO's temperature for each token, by where its log entropy lies among those of the step before (2509.16591).

    h = (ln H - pivot) / spread, scaled by `up` where positive and by `down` elsewhere, then cut to [-1, 1]; logits are
    divided by 1 + strength h. A negative `down` makes tokens below the pivot hotter too, as the released code does.
    """

    pivot: float
    spread: float
    up: float
    down: float
    strength: float


@dataclass(frozen=True)
class ForkTemperature:
    """Divides the logits by `high` where the entropy exceeds `threshold` nats, by `low` elsewhere (2506.01939)."""

    threshold: float
    high: float
    low: float


@dataclass(frozen=True)
class UniformChoice:
    """CUTS: from token `warm` on, uniform over the `k` likeliest of at least probability `floor` (2604.18493).

    Where none of them is that likely, uniform over all `k`.
    """

    k: int
    floor: float
    warm: int


@dataclass(frozen=True)
class VocabularyDropout:
    """Each token id stays with probability `keep`, decided by `seed`; `spared` ids always stay (2604.03472)."""

    keep: float
    seed: int
    spared: tuple[int, ...]


Modifier = AdaptiveTemperature | ForkTemperature | UniformChoice | VocabularyDropout
