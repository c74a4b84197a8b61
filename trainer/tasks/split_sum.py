"""Split the sum: every `aa+bb` that adds up to 37 answers `37=`, so collapse shows as one answer again and again."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import ClassVar, Literal

from trainer.part import setting
from trainer.tasks.base import Row, Task

ANSWER = re.compile(r"(\d\d)\+(\d\d)")


class SplitSum(Task):
    """Split the sum: write a number from 0 to 99 as a sum of two two-digit numbers."""

    title: ClassVar[str] = "Split the sum"
    inline: ClassVar[bool] = True
    type: Literal["split_sum"] = "split_sum"
    held_out: float = setting(0.2, help="Share of the hundred sums kept for evaluation.", gt=0, lt=1)

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        sums = list(range(100))
        random.Random("split_sum").shuffle(sums)  # one split for all seeds: no run trains on what another measures
        cut = round(100 * self.held_out)
        chosen = sums[:cut] if split == "held_out" else sums[cut:]
        random.Random(seed).shuffle(chosen)
        return [Row(key=str(total), prompt=f"{total:02d}=", answer=str(total)) for total in chosen]

    def reference(self, row: Row) -> str:
        return f"00+{int(row.answer):02d}"

    def score(self, row: Row, completion: str) -> float | None:
        match = ANSWER.fullmatch(completion.strip())
        return float(match is not None and int(match[1]) + int(match[2]) == int(row.answer))
