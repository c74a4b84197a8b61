"""A reward: one weighted part of the score of a completion."""

from __future__ import annotations

from trainer.part import Part, setting
from trainer.tasks.base import Row, Task


class Reward(Part):
    """Scores one completion of one row. `score` runs in a killable, memory-limited child process."""

    weight: float = setting(1.0, help="Factor of this part in the sum that becomes the reward.", ge=-100, le=100)

    def score(self, task: Task, row: Row, completion: str) -> float | None:
        """Return a number, or None for an invalid sample (counted, kept out of group statistics and loss)."""
        raise NotImplementedError
