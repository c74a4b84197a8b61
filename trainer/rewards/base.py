"""A reward: one weighted part of the score of a completion."""

from __future__ import annotations

from typing import ClassVar

from trainer.part import Part, setting
from trainer.tasks.base import Row, Task


class Reward(Part):
    """Scores one completion of one row. `score` runs in a killable, memory-limited child process unless `inline`."""

    inline: ClassVar[bool] = False  # linear time on any text, evaluates nothing: may run in the trainer

    weight: float = setting(
        1.0, help="Factor of this part in the sum that is the reward; 0 only measures.", ge=-100, le=100
    )

    @property
    def gated(self) -> bool:
        """Whether this part counts only where the parts before the gate sum to more than zero."""
        return False

    def prepare(self) -> None:
        """Import what `score` needs; called once in the child before its first sample, outside any deadline."""

    def score(self, task: Task, row: Row, completion: str) -> float | None:
        """Return a number, or None for an invalid sample (counted, kept out of group statistics and loss)."""
        raise NotImplementedError
