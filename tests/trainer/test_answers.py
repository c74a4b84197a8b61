"""Where the answer is in a text, and that hostile text takes linear time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trainer.answers import boxes, final_answer, last_box, last_number, number_value, reference_answer, same_number


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {x}", "x"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{1}}}", "1"),
        ("boxed{1}", None),
        ("", None),
    ],
)
def test_the_last_box(text: str, box: str | None) -> None:
    assert last_box(text) == box


@pytest.mark.parametrize(
    ("text", "number", "value"),
    [
        ("it is 12.", "12", 12.0),
        ("1,234.5 in all", "1,234.5", 1234.5),
        ("3, 4", "4", 4.0),
        ("5-3", "3", 3.0),
        ("= -3", "-3", -3.0),
        ("3/4", "3/4", 0.75),
        ("12%", "12%", 0.12),
        ("1e3", "1e3", 1000.0),
        (".5", ".5", 0.5),
        ("1/0", "1/0", None),
        ("none", None, None),
        ("9" * 61, None, None),
        ("٣", None, None),
    ],
)
def test_the_last_number(text: str, number: str | None, value: float | None) -> None:
    assert last_number(text) == number
    assert number is None or number_value(number) == value


def test_equal_numbers_are_equal_strings() -> None:
    assert {same_number(text) for text in ("1234.5", "1,234.50", "$1234.5$", "+1234.5", "1.2345e3")} == {"1234.5"}
    assert {same_number(text) for text in ("0", "-0", "0.00")} == {"0"}
    assert same_number("1e999") == "1e999"  # not written out


def test_a_reference_is_not_cut_down_to_its_last_number() -> None:
    assert reference_answer(r"\frac{1}{2}") == r"\frac{1}{2}"
    assert reference_answer("He pays 3.\n#### 1,072\n") == "1072"
    assert final_answer("so 3 of 4") == "4"
    assert final_answer(" ") is None


def test_hostile_text_ends_soon() -> None:
    code = (
        "from trainer.answers import *; n = 200_000\n"
        "for part in ('\\\\boxed{', '{', '1', '1,', '-', '\\\\boxed', '1.', '####', '\\\\boxed ', '1e'):\n"
        "    final_answer(part * n); list(boxes(part * n))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert list(boxes("{" * 100_000)) == []
