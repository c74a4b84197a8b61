"""The explosion guard: entropy that runs away upwards while reward falls."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from trainer.objectives.base import Observation

MARGIN = 1.2  # entropy this far above its target, rising, with falling reward, is an explosion


def remembered(state: dict[str, Any], seen: Observation, window: int) -> dict[str, Any]:
    """Return the entropies and rewards of the last two windows of steps."""
    span = 2 * window
    return {
        "entropies": [*state["entropies"], seen.entropy][-span:] if span else [],
        "rewards": [*state["rewards"], seen.reward][-span:] if span else [],
    }


def exploding(state: dict[str, Any], window: int, target: float) -> bool:
    """Return whether entropy rose from one window to the next, above its target (nats), while reward fell."""
    if not window or len(state["entropies"]) < 2 * window:
        return False
    entropy, reward = ([fmean(state[key][:window]), fmean(state[key][window:])] for key in ("entropies", "rewards"))
    return entropy[1] > max(entropy[0], MARGIN * target) and reward[1] < reward[0]
