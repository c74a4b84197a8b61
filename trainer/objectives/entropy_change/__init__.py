"""Entropy change: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.base import Family

FAMILY = Family("Entropy change", ())
