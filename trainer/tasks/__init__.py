"""Tasks: a plain table from `type` to class; a new task is a file and a row."""

from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field

from trainer.tasks.base import Row, Task
from trainer.tasks.countdown import Countdown
from trainer.tasks.dataset import Dataset
from trainer.tasks.reasoning_gym import ReasoningGym
from trainer.tasks.split_sum import SplitSum

TASKS: dict[str, type[Task]] = {
    "countdown": Countdown,
    "split_sum": SplitSum,
    "dataset": Dataset,
    "reasoning_gym": ReasoningGym,
}

TaskConfig: Any = Annotated[
    reduce(or_, TASKS.values()), Field(discriminator="type")
]  # mypy cannot follow a union made from a table

__all__ = ["TASKS", "Row", "Task", "TaskConfig"]
