"""Courses over a run: where a target stands at share x of it. Pure numbers, no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

Point = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=20)]]


def _rising(points: list[Point]) -> list[Point]:
    if any(left[0] >= right[0] for left, right in itertools.pairwise(points)):
        raise ValueError("the x of drawn points must rise from point to point; sort them and remove doubles")
    return points


Points = Annotated[list[Point], AfterValidator(_rising), Field(max_length=200)]


def linear(start: float, end: float, x: float) -> float:
    return start + (end - start) * _share(x)


def cosine(start: float, end: float, x: float) -> float:
    return start + (end - start) * 0.5 * (1 - math.cos(math.pi * _share(x)))


def drawn(points: Sequence[Point], x: float) -> float:
    """Return the piecewise linear course through the points, level before the first and after the last."""
    left = points[0]
    for right in points:
        if x <= right[0]:
            width = right[0] - left[0]
            return right[1] if width <= 0 else left[1] + (right[1] - left[1]) * (x - left[0]) / width
        left = right
    return left[1]


def progress(step: int, total_steps: int) -> float:
    """Return the share of the run done at this step, in [0, 1]."""
    return _share(step / total_steps) if total_steps > 0 else 0.0


def _share(x: float) -> float:
    return min(max(x, 0.0), 1.0)
