"""Tasks: a plain table from `type` to class; a new task is a file and a row."""

from typing import Annotated, Union

from pydantic import Field

from trainer.tasks.base import Row, Task
from trainer.tasks.countdown import Countdown
from trainer.tasks.split_sum import SplitSum

TASKS: dict[str, type[Task]] = {
    "countdown": Countdown,
    "split_sum": SplitSum,
}

TaskConfig = Annotated[Union[tuple(TASKS.values())], Field(discriminator="type")]  # type: ignore[valid-type]

__all__ = ["TASKS", "Row", "Task", "TaskConfig"]
