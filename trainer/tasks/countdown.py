"""Countdown with three numbers: `257=19:` is answered by an expression that uses 2, 5 and 7 once each and equals 19."""

from __future__ import annotations

import itertools
import operator
import random
import re
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Literal

from trainer.part import setting
from trainer.tasks.base import Row, Task

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
ANSWER = re.compile(r"([1-9])([+*-])([1-9])([+*-])([1-9])")


def value(expression: str) -> int | None:
    """Return what `a?b?c` equals with * before + and -, or None where it is no such expression."""
    match = ANSWER.fullmatch(expression)
    if not match:
        return None
    a, first, b, second, c = match.groups()
    x, y, z = int(a), int(b), int(c)
    if second == "*" and first != "*":
        return OPERATORS[first](x, y * z)
    return OPERATORS[second](OPERATORS[first](x, y), z)


@cache
def solutions() -> dict[tuple[str, int], tuple[str, ...]]:
    """Return every (sorted digits, positive target below 100) with its right expressions, in a fixed order."""
    found: dict[tuple[str, int], set[str]] = {}
    for digits in itertools.combinations_with_replacement("123456789", 3):
        for order in set(itertools.permutations(digits)):
            for first, second in itertools.product(OPERATORS, repeat=2):
                expression = f"{order[0]}{first}{order[1]}{second}{order[2]}"
                total = value(expression)
                if total is not None and 0 < total < 100:
                    found.setdefault(("".join(digits), total), set()).add(expression)
    return {key: tuple(sorted(found[key])) for key in sorted(found)}


class Countdown(Task):
    """Countdown: reach the target with three digits, each used once, and + - *."""

    title: ClassVar[str] = "Countdown"
    inline: ClassVar[bool] = True
    type: Literal["countdown"] = "countdown"
    held_out: float = setting(0.1, help="Share of the puzzles kept for evaluation.", gt=0, lt=1)
    min_solutions: int = setting(
        2, help="Puzzles with fewer right expressions are left out.", ge=1, le=20, advanced=True
    )

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        keys = [key for key, right in solutions().items() if len(right) >= self.min_solutions]
        random.Random("countdown").shuffle(keys)  # one split for all seeds: no run trains on what another measures
        cut = round(len(keys) * self.held_out)
        chosen = keys[:cut] if split == "held_out" else keys[cut:]
        random.Random(seed).shuffle(chosen)
        return [
            Row(key=f"{digits}={total}", prompt=f"{digits}={total}:", answer=str(total), extra={"digits": digits})
            for digits, total in chosen
        ]

    def reference(self, row: Row) -> str:
        return solutions()[row.extra["digits"], int(row.answer)][0]

    def score(self, row: Row, completion: str) -> float | None:
        answer = completion.strip()
        used = "".join(sorted(character for character in answer if character.isdigit()))
        return float(used == row.extra["digits"] and value(answer) == int(row.answer))
