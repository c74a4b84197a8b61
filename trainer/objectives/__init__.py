"""Objectives: tables of parts and presets, the config that names them. Imports no torch until a part computes."""

from __future__ import annotations

from trainer.objectives.base import STAGES, Knob, Observation, Outcome, Step
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.evaluate import evaluate as _evaluate  # noqa: F401  loads the callable module `evaluate`
from trainer.objectives.objective import Objective
from trainer.objectives.preset import Preset
from trainer.objectives.registry import PARTS, PRESETS

__all__ = [
    "PARTS",
    "PRESETS",
    "STAGES",
    "Knob",
    "Objective",
    "ObjectiveConfig",
    "Observation",
    "Outcome",
    "Preset",
    "Step",
]
