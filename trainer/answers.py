r"""Finding the answer in a text: the last \boxed{}, the last number, numbers in one form. Linear time on any text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
# ASCII digits only; a comma belongs to the number only before three digits, a sign only where no number ends before it
NUMBER = re.compile(r"(?<![\d.])[-+]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4})?(?:/\d+)?%?", re.ASCII)
MAX_DIGITS = 60


def boxes(text: str) -> Iterator[str]:
    r"""Yield what stands in each balanced \boxed{...} in the order in which they close."""
    open_at: list[int | None] = []  # where the content of a box starts, None for plain braces
    for match in BRACES.finditer(text):
        if match[0].endswith("{") and match[0] != "\\{":
            open_at.append(match.end() if match[0].startswith("\\boxed") else None)
        elif match[0] == "}" and open_at and (start := open_at.pop()) is not None:
            yield text[start : match.start()]


def last_box(text: str) -> str | None:
    r"""Return what stands in the last \boxed{...}, or None."""
    found = None
    for found in boxes(text):  # noqa: B007  (the last one is wanted)
        pass
    return found


def last_number(text: str) -> str | None:
    """Return the last number as it is written, or None where there is none or it is longer than MAX_DIGITS."""
    found = None
    for match in NUMBER.finditer(text):
        found = match[0]
    return found if found and len(found) <= MAX_DIGITS else None


def number_value(written: str) -> float | None:
    """Return the value of a number as `last_number` gives it (1,234.5 or 3/4 or 12%), or None."""
    plain = written.replace(",", "").removesuffix("%")
    top, _, bottom = plain.partition("/")
    try:
        value = float(top) / (float(bottom) if bottom else 1.0)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return value / 100 if written.endswith("%") else value


def same_number(written: str) -> str:
    """Return a number in the form in which equal ones are equal strings (1,234.50 and 1234.5), others trimmed."""
    text = written.strip().strip("$").strip()
    if not NUMBER.fullmatch(text) or len(text) > MAX_DIGITS or "/" in text or "%" in text:
        return text
    try:
        value = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return text
    if abs(value.adjusted()) > MAX_DIGITS:
        return text
    return format(value.normalize(), "f") if value else "0"


def marked_answer(text: str) -> str | None:
    r"""Return the answer a text marks: what stands in its last \boxed{}, else what follows its last ####, or None."""
    box = last_box(text)
    if box is not None:
        return box.strip()
    _, mark, after = text.rpartition("####")
    return after.strip().partition("\n")[0].strip() if mark else None


def reference_answer(text: str) -> str | None:
    r"""Return what a reference asks for: its marked answer, else all of it (the 2 of \frac{1}{2} is not the answer)."""
    marked = marked_answer(text)
    return same_number(text.strip() if marked is None else marked) or None


def final_answer(text: str) -> str | None:
    """Return the answer a completion ends with: its marked answer, else its last number, else all of it, trimmed."""
    marked = marked_answer(text)
    if marked is not None:
        return same_number(marked) or None
    number = last_number(text)
    return same_number(number) if number else text.strip() or None
