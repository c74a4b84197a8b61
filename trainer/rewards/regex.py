"""A pattern, matched in the child: one that backtracks for ever costs its sample the deadline and nothing else."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import field_validator

from trainer.part import setting
from trainer.rewards.base import Reward
from trainer.tasks.base import Row, Task


class RegexReward(Reward):
    """Pattern: 1 where a regular expression matches, and if asked for captures the reference answer.

    Python's syntax; (?s) and (?i) at the front set flags.
    """

    title: ClassVar[str] = "Pattern"
    type: Literal["regex"] = "regex"
    pattern: str = setting(
        r"(-?\d+)\s*$", help="Regular expression looked for in the completion.", min_length=1, max_length=1000
    )
    compare: bool = setting(True, help="Compare the first group, or all that matched, with the reference answer.")
    which: Literal["first", "last"] = setting("last", help="Which match to compare.", show_if={"compare": True})

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"this is no regular expression ({error})") from error
        return pattern

    def score(self, task: Task, row: Row, completion: str) -> float | None:
        found = None
        for found in re.finditer(self.pattern, completion):  # noqa: B007  (the last one may be wanted)
            if self.which == "first" or not self.compare:
                break
        if found is None or not self.compare:
            return float(found is not None)
        captured = found[1] if found.re.groups else found[0]
        return float((captured or "").strip() == row.answer.strip())
