"""Exact match after trimming."""

from __future__ import annotations

from typing import ClassVar, Literal

from trainer.part import setting
from trainer.rewards.base import Reward
from trainer.tasks.base import Row, Task


class ExactReward(Reward):
    """Exact match: 1 where the completion equals the reference answer after trimming white space."""

    title: ClassVar[str] = "Exact match"
    inline: ClassVar[bool] = True
    type: Literal["exact"] = "exact"
    ignore_case: bool = setting(False, help="Compare without regard to case.")

    def score(self, task: Task, row: Row, completion: str) -> float | None:
        given, wanted = completion.strip(), row.answer.strip()
        return float(given.casefold() == wanted.casefold() if self.ignore_case else given == wanted)
