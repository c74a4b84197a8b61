"""Several runs beside each other: curves, settings that differ, figures, rollouts of the same prompt."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from django.db.models import F
from django.db.models.functions import Coalesce, Now
from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_GET

from webapp.http import Request
from webapp.runs.comparison import (
    MAX_MEMBERS,
    MAX_PANES,
    MAX_RUNS,
    colours,
    differences,
    metrics,
    shared_prompts,
    summary,
)
from webapp.runs.models import Run, Sweep
from webapp.runs.sweeps.table import Row, members, table

CHOICES = 60
SHOWN_FIRST = ("reward/mean", "entropy/mean")


def runs_for(request: Request) -> list[Run]:
    """Return the runs the address names, in its order, those this person may see."""
    ids = list(dict.fromkeys(item for item in request.GET.get("runs", "").split(",") if item))[:MAX_RUNS]
    lasted = Coalesce(F("ended_at"), Now()) - F("started_at")
    found = Run.objects.visible_to(request.user).select_related("owner").annotate(lasted=lasted).in_bulk(ids)
    return [found[run_id] for run_id in ids if run_id in found]


@dataclass(frozen=True)
class Shown:
    """The runs of a sweep that are compared; `groups` says by run which row of its table it belongs to."""

    sweep: Sweep
    rows: list[Row]
    runs: list[Run]
    total: int

    @property
    def groups(self) -> dict[str, Row]:
        return {run.pk: row for row in self.rows for run in row.runs if run is not None}

    @property
    def panes(self) -> set[str]:
        """Return one run of each row: more than one seed of it says little about a prompt."""
        firsts = [next(run.pk for run in row.runs if run is not None) for row in self.rows]
        shown = {run.pk for run in self.runs}
        return set([run_id for run_id in firsts if run_id in shown][:MAX_PANES])


def sweep_of(request: Request) -> Shown | None:
    """Return the sweep that the address names, its first seeds first so that every objective is there."""
    sweep = Sweep.objects.visible_to(request.user).filter(pk=request.GET.get("sweep", "")).first()
    if sweep is None:
        return None
    rows = table(sweep, members([sweep.pk])).rows
    order = [run.pk for seed in zip_longest(*(row.runs for row in rows)) for run in seed if run is not None]
    lasted = Coalesce(F("ended_at"), Now()) - F("started_at")
    found = Run.objects.select_related("owner").annotate(lasted=lasted).in_bulk(order[:MAX_MEMBERS])
    kept = [found[run.pk] for row in rows for run in row.runs if run is not None and run.pk in found]
    for run in kept:  # the page has the sweep's name above
        run.name = run.name.removeprefix(f"{sweep.name} · ")
    return Shown(sweep, rows, kept, len(order))


@require_GET
def compare(request: Request) -> HttpResponse:
    """Show the runs beside each other."""
    shown = sweep_of(request)
    runs = shown.runs if shown else runs_for(request)
    colour = {run: row.colour for run, row in shown.groups.items()} if shown else colours(runs)
    names = metrics(runs)
    ids = [run.pk for run in runs]
    columns = [(run, colour[run.pk], _without(ids, run.pk)) for run in runs]
    # Names of a sweep's runs differ by what the other rows say.
    rows = [row for row in differences(runs) if not (shown and row.key == "name")] if len(runs) > 1 else []
    context = {
        "columns": columns,
        "differences": rows,
        "differing": sum(row.differs for row in rows),
        "summary": summary(runs, names),
        "names": names,
        "choices": [] if shown else _choices(request, ids),
        "ids": ids,
        "full": len(ids) >= MAX_RUNS or shown is not None,
        "shown": shown,
        "page": _page(runs, colour, names, shown),
    }
    return render(request, "runs/compare.html", context)


def _without(ids: list[str], gone: str) -> str:
    return ",".join(run_id for run_id in ids if run_id != gone)


def _choices(request: Request, ids: list[str]) -> list[Run]:
    runs = Run.objects.visible_to(request.user).active().exclude(pk__in=ids).exclude(started_at=None)
    return list(runs.only("id", "name", "state").order_by("-created_at")[:CHOICES])


def _page(runs: list[Run], colour: dict[str, int], names: list[str], shown: Shown | None) -> dict[str, Any]:
    """Return what the script needs: addresses and colours of the runs, the metrics there are."""
    groups, panes = (shown.groups, shown.panes) if shown else ({}, {run.pk for run in runs})
    return {
        "runs": [
            {
                "id": run.pk,
                "name": run.name,
                "colour": colour[run.pk],
                "alive": run.alive,
                "pane": run.pk in panes,
                "series": reverse("runs:series", args=[run.pk]),
                # The script puts the step in place of 0.
                "rollout": reverse("runs:rollout", args=[run.pk, 0]),
                **_group(groups.get(run.pk)),
            }
            for run in runs
        ],
        "names": names,
        "first": [name for name in SHOWN_FIRST if name in names] or names[:2],
        "prompts": reverse("runs:compare_rollouts"),
    }


def _group(row: Row | None) -> dict[str, Any]:
    if row is None:
        return {}
    return {"dash": row.dash, "group": {"label": row.label, "colour": row.colour, "dash": row.dash}}


@require_GET
def rollouts(request: Request) -> JsonResponse:
    """Answer with the prompts that several of the runs have answered, and at which steps."""
    return JsonResponse({"prompts": shared_prompts(runs_for(request))})
