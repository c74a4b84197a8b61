"""Ratio and clip: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.base import Family
from trainer.objectives.surrogates import aspo, ce_gppo, cispo, gspo, ppo_clip, sapo

FAMILY = Family("Ratio and clip", (ppo_clip, cispo, gspo, sapo, ce_gppo, aspo))
