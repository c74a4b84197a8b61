"""Branching rollouts: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.branching import cure, echo, etmr, rose, tree_advantage, treerl
from trainer.objectives.preset import Family

FAMILY = Family("Branching rollouts", (cure, etmr, treerl, echo, rose, tree_advantage))
