"""The task's own check."""

from __future__ import annotations

from typing import ClassVar, Literal

from trainer.rewards.base import Reward
from trainer.tasks.base import Row, Task


class TaskReward(Reward):
    """Task check: 1 for what the task itself counts as right, 0 otherwise."""

    title: ClassVar[str] = "Task check"
    inline: ClassVar[bool] = True
    type: Literal["task"] = "task"

    def score(self, task: Task, row: Row, completion: str) -> float | None:
        return task.score(row, completion)
