"""Entropy change: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.base import Family
from trainer.objectives.entropy_change import clip_bv, erc, steer, two_branch

FAMILY = Family(
    "Entropy change",
    (
        steer,
        clip_bv,
        two_branch,
        erc,
    ),
)
