"""Entropy change: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.entropy_change import clip_bv, erc, steer, two_branch
from trainer.objectives.preset import Family

FAMILY = Family(
    "Entropy change",
    (
        steer,
        clip_bv,
        two_branch,
        erc,
    ),
)
