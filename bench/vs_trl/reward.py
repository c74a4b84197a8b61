"""The reward of the end-to-end comparison. Standard library only: both sides use it."""

from __future__ import annotations


def variety(text: str) -> float:
    """Return how many different characters a text has, over its length: almost never equal within a group.

    A group of equal rewards teaches nothing, and our trainer would skip its gradient; here no group is skipped.
    """
    return len(set(text)) / (1 + len(text))
