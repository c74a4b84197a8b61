"""The curves of a sweep's members in one answer; a request for each run would be two hundred."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from django.db.models.fields.json import KeyTextTransform, KeyTransform

from webapp.runs.models import Event, Run

POINTS = 240  # of one curve

Points = dict[str, dict[int, float]]  # {metric: {step: value}}


@dataclass(frozen=True)
class Curves:
    """{run id: {metric: [steps, values]}}; a point is the mean of `width` steps, the same steps in every run."""

    runs: dict[str, dict[str, list[list[Any]]]]
    width: int


def curves(runs: Sequence[Run], names: Sequence[str]) -> Curves:
    """Return what counts of the runs' metrics: points that a later attempt replaced are left out."""
    ids = [run.pk for run in runs]
    cuts = _cuts(ids)
    found: dict[str, Points] = defaultdict(lambda: {name: {} for name in names})
    values = {f"value_{at}": KeyTextTransform(name, KeyTransform("values", "data")) for at, name in enumerate(names)}
    rows = Event.objects.filter(run__in=ids, type="metrics").order_by("run", "step", "seq").annotate(**values)
    last = 0
    for run, attempt, step, *texts in rows.values_list("run", "attempt", "step", *values).iterator():
        if step > cuts.get((run, attempt), inf):
            continue
        last = max(last, step)
        for name, text in zip(names, texts, strict=True):
            if text is not None and isfinite(value := float(text)):
                found[run][name][step] = value
    width = -(-last // POINTS) or 1
    return Curves(
        {run: {name: _thin(at, width) for name, at in points.items()} for run, points in found.items()}, width
    )


def _thin(points: dict[int, float], width: int) -> list[list[Any]]:
    """Return [steps, values] with the mean of every `width` steps at the last of them."""
    buckets: dict[int, list[float]] = defaultdict(list)
    for step, value in points.items():
        buckets[-(-step // width) * width].append(value)
    return [list(buckets), [sum(values) / len(values) for values in buckets.values()]]


def _cuts(ids: Sequence[str]) -> dict[tuple[str, int], float]:
    """Return {(run, attempt): step}: points of the attempt behind that step were replaced by a later attempt."""
    starts = Event.objects.filter(run__in=ids, type="started").order_by("run", "attempt")
    cuts: dict[tuple[str, int], float] = {}
    for run, attempt, resume_step in starts.values_list("run", "attempt", "data__resume_step"):
        for earlier in range(1, attempt):
            cuts[run, earlier] = min(cuts.get((run, earlier), inf), resume_step or 0)
    return cuts
