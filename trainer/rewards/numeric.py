"""The last number, within a tolerance."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from trainer.answers import last_box, last_number, number_value
from trainer.part import setting
from trainer.rewards.base import Reward
from trainer.tasks.base import Row, Task


class NumericReward(Reward):
    """Number: 1 where the last number of the completion equals the reference within a tolerance.

    Reads 1,234.5 and 3/4 and 12%. A row whose reference holds no number makes its samples invalid.
    """

    title: ClassVar[str] = "Number"
    type: Literal["numeric"] = "numeric"
    absolute: float = setting(1e-6, help="Largest difference that still counts as equal.", ge=0, le=1e12)
    relative: float = setting(0.0, help="The same, as a share of the larger of the two.", ge=0, lt=1)
    boxed: bool = setting(False, help="Look only inside the last \\boxed{}.")

    def score(self, task: Task, row: Row, completion: str) -> float | None:
        wanted = _value(row.answer)
        if wanted is None:
            return None
        given = _value((last_box(completion) or "") if self.boxed else completion)
        return float(given is not None and math.isclose(given, wanted, rel_tol=self.relative, abs_tol=self.absolute))


def _value(text: str) -> float | None:
    written = last_number(text)
    return None if written is None else number_value(written)
