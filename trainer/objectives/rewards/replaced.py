"""Which reward shapers put a reward of their own in place of the task's: two of them in one objective make no sense."""

from __future__ import annotations

REPLACING = frozenset({"empo", "majority_vote", "evol_rl", "confidence_reward", "spurious_reward"})


def others(kind: str) -> frozenset[str]:
    """Return the types that a replacing shaper of this type refuses."""
    return REPLACING - {kind}
