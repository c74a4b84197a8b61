"""Mathematical equality by the math-verify library, behind a guard and inside a child that can be killed.

Its own time limits are alarms: they work in the main thread only, replace the host's alarm and cannot interrupt C.
They are switched off here; the pool's deadline takes their place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal

from trainer.answers import boxes, last_box, last_number, marked_answer
from trainer.errors import ConfigError
from trainer.part import setting
from trainer.rewards.base import Reward
from trainer.rewards.math_guard import refusal
from trainer.tasks.base import Row, Task

DOLLARS = re.compile(r"\$([^$]+)\$")


class MathVerifyReward(Reward):
    """Mathematics: 1 where the answer equals the reference as mathematics, 1/2 and 0.5 and \\frac{2}{4} alike.

    The answer is what stands in a \\boxed{}, else the last $formula$, else the last number. A row whose reference
    cannot be read makes its samples invalid; the check before the run names such rows.
    """

    title: ClassVar[str] = "Mathematics"
    type: Literal["math_verify"] = "math_verify"
    box: Literal["last", "first"] = setting("last", help="Which \\boxed{} counts; the first one rewards many guesses.")
    require_box: bool = setting(False, help="Without a \\boxed{} the answer is wrong.")
    decimals: int = setting(6, help="Decimal places to which numbers are compared.", ge=0, le=30, advanced=True)

    def prepare(self) -> None:
        try:
            _parse("1")
        except ImportError as error:
            raise ConfigError(
                f"rewards: math_verify needs {error.name}; pip install isentrope[trainer]", "rewards"
            ) from error

    def score(self, task: Task, row: Row, completion: str) -> float | None:
        wanted = _reference(row.answer)
        if not wanted:
            return None
        answer = self._answer(completion)
        if not answer or refusal(answer):
            return 0.0
        given = _parse(answer)
        return float(bool(given) and _verify(wanted, given, self.decimals))

    def _answer(self, completion: str) -> str | None:
        box = next(boxes(completion), None) if self.box == "first" else last_box(completion)
        if box is not None or self.require_box:
            return box
        return _last_formula(completion) or last_number(completion)


@lru_cache(maxsize=4096)
def _reference(answer: str) -> Sequence[Any]:
    """Return the parsed reference, parsed once; empty where it is none."""
    text = marked_answer(answer) or _last_formula(answer) or answer.strip()
    return [] if refusal(text) else _parse(text)


def _last_formula(text: str) -> str | None:
    r"""Return what stands in the last $...$ or \(...\), whichever ends later; linear on any text."""
    found, at = None, -1
    for match in DOLLARS.finditer(text):
        found, at = match[1], match.end()
    end = text.rfind("\\)")
    start = text.rfind("\\(", 0, end) if end > at else -1
    if start >= 0:
        found = text[start + 2 : end]
    return found.strip() if found else None


def _parse(text: str) -> Sequence[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    plain = text.strip().strip("$").strip()
    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    return parse(f"${plain}$", extraction_config=configs, fallback_mode="no_fallback", parsing_timeout=None)


def _verify(wanted: Sequence[Any], given: Sequence[Any], decimals: int) -> bool:
    """The order matters: intervals and chains of equations are compared from the reference's side."""
    from math_verify import verify

    return verify(wanted, given, float_rounding=decimals, timeout_seconds=None)
