"""The course of an objective's entropy target over a run, as the page draws it."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.objectives import ObjectiveConfig
from trainer.objectives.preview import curve

WIDTH, HEIGHT = 300, 96  # of the drawing, in its own units
LEFT, BOTTOM, TOP, RIGHT = 30, 16, 6, 4


@dataclass(frozen=True)
class Course:
    """A band of entropy targets; `band` is the outline of its area, `low` and `high` its edges, as SVG points."""

    low: str = ""
    high: str = ""
    band: str = ""
    point: bool = False
    unit: str = "nats"
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    first: tuple[float, float] = (0.0, 0.0)
    last: tuple[float, float] = (0.0, 0.0)


def course_of(objective: ObjectiveConfig, steps: int) -> Course | None:
    """Return the course of an objective's entropy target over `steps`, None where it aims at none."""
    planned = curve(objective)
    if planned is None:
        return None
    shares, lows, highs = planned["x"], planned["low"], planned["high"]
    top = ceiling(max(highs))
    low = [(x_of(share), y_of(value, top)) for share, value in zip(shares, lows, strict=True)]
    high = [(x_of(share), y_of(value, top)) for share, value in zip(shares, highs, strict=True)]
    return Course(
        low=points(low),
        high=points(high),
        band=points(low + high[::-1]),
        point=lows == highs,
        unit="nats" if planned["unit"] == "nats" else "× initial entropy",
        x_ticks=[(x_of(share), f"{round(share * steps):,}") for share in (0, 0.5, 1)],
        y_ticks=[(y_of(top * share, top), f"{top * share:.3g}") for share in (0, 0.5, 1)],
        first=(lows[0], highs[0]),
        last=(lows[-1], highs[-1]),
    )


def ceiling(value: float) -> float:
    """Return the next round number above `value`, so that the scale stays while a point is dragged."""
    return next((step for step in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20) if value <= step * 0.95), 24.0)


def x_of(share: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * share


def y_of(value: float, top: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)


def points(found: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in found)
