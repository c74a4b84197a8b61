"""Sweeps in the list of runs: each is one row in the place of its members that the list's filter lets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.postgres.aggregates import ArrayAgg
from django.db.models import Avg, Count, Max, Min, Q, Sum
from django.utils import timezone

from webapp.runs.filters import ENTROPY, REWARD, RunFilter, latest
from webapp.runs.models import Run, RunQuerySet, State
from webapp.runs.sweeps.table import Progress, progress

PREFIX = "sweep:"  # before a sweep's id where the list names runs


@dataclass(frozen=True)
class Group:
    """A sweep as the list shows it: figures over the members that the filter lets through."""

    progress: Progress
    runs: int
    total: int
    reward: tuple[float | None, float | None, float | None]
    entropy: tuple[float | None, float | None, float | None]
    objectives: list[str]
    lasted: timedelta | None

    @property
    def share(self) -> float | None:
        """Percent of the planned steps that are done."""
        steps = self.progress.total_steps
        return 100 * self.progress.step / steps if steps else None


def heads(wanted: RunFilter, runs: RunQuerySet) -> RunQuerySet:
    """Return the runs of the list with one member for each sweep: the one that the order puts first."""
    chosen = wanted.select(runs)
    first = chosen.filter(sweep__isnull=False).order_by("sweep_id", *chosen.query.order_by).distinct("sweep_id")
    return chosen.filter(Q(sweep=None) | Q(pk__in=first.values("pk")))


def groups(wanted: RunFilter, runs: RunQuerySet, page: Sequence[Run]) -> dict[str, Group]:
    """Return the sweeps of one page of heads by their ids; one query, none where there is no sweep."""
    ids = [run.sweep_id for run in page if run.sweep_id]
    if not ids:
        return {}
    found = (
        wanted.select(runs)
        .filter(sweep__in=ids)
        .order_by()
        .values("sweep")
        .annotate(
            runs=Count("id"),
            steps=Sum("step"),
            total_steps=Sum("total_steps"),
            **{f"in_{state}": Count("id", filter=Q(state=state)) for state in State.values},
            **{f"reward_{name}": kind(latest(REWARD)) for name, kind in SPAN.items()},
            **{f"entropy_{name}": kind(latest(ENTROPY)) for name, kind in SPAN.items()},
            objectives=ArrayAgg("objective", distinct=True),
            first=Min("started_at"),
            last=Max("ended_at"),
        )
    )
    totals = dict(Run.objects.filter(sweep__in=ids).order_by().values_list("sweep").annotate(Count("id")))
    return {row["sweep"]: _group(row, totals) for row in found}


SPAN = {"mean": Avg, "low": Min, "high": Max}


def _group(row: dict, totals: dict[str, int]) -> Group:
    done = progress({state: row[f"in_{state}"] for state in State.values}, row["steps"], row["total_steps"])
    return Group(
        progress=done,
        runs=row["runs"],
        total=totals[row["sweep"]],
        reward=tuple(row[f"reward_{name}"] for name in SPAN),  # type: ignore[arg-type]
        entropy=tuple(row[f"entropy_{name}"] for name in SPAN),  # type: ignore[arg-type]
        objectives=sorted(row["objectives"]),
        lasted=_lasted(row["first"], row["last"], alive=done.count("running") > 0),
    )


def _lasted(first: datetime | None, last: datetime | None, *, alive: bool) -> timedelta | None:
    if first is None:
        return None
    end = timezone.now() if alive or last is None else last
    return end - first


def expand(ids: Sequence[str], wanted: RunFilter, runs: RunQuerySet) -> list[str]:
    """Return run ids in which each `sweep:ID` stands for those of its members that the filter lets through."""
    sweeps = [item.removeprefix(PREFIX) for item in ids if item.startswith(PREFIX)]
    if not sweeps:
        return list(ids)
    members: dict[str, list[str]] = {sweep: [] for sweep in sweeps}
    for sweep, run in wanted.select(runs).filter(sweep__in=sweeps).order_by("created_at").values_list("sweep", "id"):
        members[sweep].append(run)
    nested = [members[item.removeprefix(PREFIX)] if item.startswith(PREFIX) else [item] for item in ids]
    return list(dict.fromkeys(run for part in nested for run in part))
