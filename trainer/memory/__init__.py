"""Memory of a run before it starts: what it will take at its fullest, what there is, and what to lower. No torch."""

from trainer.memory.advice import Advice, advice
from trainer.memory.plan import LABELS, PHASES, MemoryPlan, Phase, plan, unknown
from trainer.memory.room import available

__all__ = ["LABELS", "PHASES", "Advice", "MemoryPlan", "Phase", "advice", "available", "plan", "unknown"]
