"""Token selection and distribution: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.base import Family
from trainer.objectives.selection import top_entropy

FAMILY = Family("Token selection and distribution", (top_entropy,))
