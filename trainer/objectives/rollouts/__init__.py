"""Rollouts: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.preset import Family
from trainer.objectives.rollouts import dars, dynamic_sampling, oversampling, prompt_augmentation

FAMILY = Family("Rollouts", (dynamic_sampling, dars, oversampling, prompt_augmentation))
