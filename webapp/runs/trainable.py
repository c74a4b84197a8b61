"""Which objectives only look at recorded numbers so far."""

from __future__ import annotations

from functools import cache

from trainer.objectives import PRESETS, ObjectiveConfig
from trainer.statistics import unavailable


@cache
def untrainable() -> dict[str, str]:
    """Return {preset: one sentence} of the presets that read a statistic which the trainer cannot give yet."""
    found: dict[str, str] = {}
    for name in PRESETS:
        lacking = [info for part in ObjectiveConfig(preset=name).parts for info in unavailable(part.reads())]
        if lacking:
            found[name] = f"Cannot be trained yet: it takes {lacking[0].missing}."
    return found
