"""Advantage shaping: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.advantages import (
    aem,
    canon,
    ces,
    dgpo,
    edge_grpo,
    empg,
    erpo,
    ettrl_ear,
    exploration,
    gtpo,
    hicra,
    maxrl,
    rlrt,
    seed_grpo,
    ucas,
)
from trainer.objectives.preset import Family

FAMILY = Family(
    "Advantage shaping",
    (
        exploration,
        canon,
        maxrl,
        ucas,
        seed_grpo,
        aem,
        edge_grpo,
        ettrl_ear,
        empg,
        erpo,
        gtpo,
        hicra,
        dgpo,
        ces,
        rlrt,
    ),
)
