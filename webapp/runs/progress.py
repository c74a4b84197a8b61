"""How fast a run goes and when it will be done."""

from __future__ import annotations

import statistics
from itertools import pairwise

from webapp.runs.models import Run, State

WINDOW = 20  # step times looked at
LEAST = 5  # step times before anything is said


def step_seconds(run: Run) -> list[float]:
    """Return up to 20 latest step times of the current attempt in seconds, evaluations and checkpoints included."""
    newest = run.events.filter(type="metrics", attempt=run.attempt).order_by("-seq")
    points = list(newest.values_list("step", "time")[: WINDOW + 1])
    return [
        (later - earlier).total_seconds() / (step - before)
        for (step, later), (before, earlier) in pairwise(points)
        if step > before and later >= earlier
    ]


def eta_seconds(run: Run) -> tuple[float, float] | None:
    """Return (least, most) likely seconds to the end, quartiles of recent step times; None where nobody can know."""
    if run.state != State.RUNNING or run.total_steps <= run.step:
        return None
    times = step_seconds(run)
    if len(times) < LEAST:
        return None
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    remaining = run.total_steps - run.step
    return low * remaining, high * remaining
