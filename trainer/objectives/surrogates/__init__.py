"""Ratio and clip: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.preset import Family
from trainer.objectives.surrogates import (
    agentic_aepo,
    aspo,
    ce_gppo,
    cispo,
    copo,
    critique_grpo,
    echo,
    engine_correction,
    flexible_clip,
    gspo,
    hapo,
    htpo,
    ppo_clip,
    sapo,
)

FAMILY = Family(
    "Ratio and clip",
    (
        ppo_clip,
        cispo,
        gspo,
        sapo,
        ce_gppo,
        aspo,
        flexible_clip,
        hapo,
        htpo,
        agentic_aepo,
        echo,
        critique_grpo,
        copo,
        engine_correction,
    ),
)
