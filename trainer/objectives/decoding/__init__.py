"""Decoding: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.decoding import cuts, fork_temperature, hapo_temperature, typical, vocabulary_dropout
from trainer.objectives.preset import Family

FAMILY = Family("Decoding", (hapo_temperature, fork_temperature, cuts, typical, vocabulary_dropout))
