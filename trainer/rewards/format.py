"""The asked-for form: tags and a box. Gated by correctness, since form alone is easily paid for with length."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import field_validator

from trainer.answers import boxes
from trainer.part import setting
from trainer.rewards.base import Reward
from trainer.tasks.base import Row, Task


class FormatReward(Reward):
    """Format: 1 where each tag stands once, closed and in order, and a \\boxed{} where one is asked for."""

    title: ClassVar[str] = "Format"
    type: Literal["format"] = "format"
    tags: list[str] = setting(
        help="Tags in order: think, answer asks for <think>…</think><answer>…</answer>.",
        default_factory=list,
        max_length=16,
    )
    boxed: bool = setting(False, help="Ask for at least one \\boxed{}.")
    only_if_right: bool = setting(True, help="Pay for form only where the other parts find the answer right.")

    @field_validator("tags")
    @classmethod
    def _are_names(cls, tags: list[str]) -> list[str]:
        for tag in tags:
            if not re.fullmatch(r"[A-Za-z][\w-]{0,63}", tag):
                raise ValueError(f"{tag!r} is no tag name; write think for <think>…</think>")
        return tags

    @property
    def gated(self) -> bool:
        return self.only_if_right

    def score(self, task: Task, row: Row, completion: str) -> float | None:
        at = 0
        for mark in (mark for tag in self.tags for mark in (f"<{tag}>", f"</{tag}>")):
            if completion.count(mark) != 1 or (found := completion.find(mark, at)) < 0:
                return 0.0
            at = found + len(mark)
        return float(not self.boxed or any(True for _ in boxes(completion)))
