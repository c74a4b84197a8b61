"""Token selection and distribution: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.preset import Family
from trainer.objectives.selection import (
    attention_entropy,
    dcpo,
    epo,
    light_if,
    lp_reg,
    siren,
    spine,
    top_entropy,
    trace,
)

FAMILY = Family(
    "Token selection and distribution",
    (
        top_entropy,
        spine,
        attention_entropy,
        lp_reg,
        dcpo,
        siren,
        trace,
        epo,
        light_if,
    ),
)
