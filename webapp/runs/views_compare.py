"""Several runs beside each other: curves, settings that differ, figures, rollouts of the same prompt."""

from __future__ import annotations

from typing import Any

from django.db.models import F
from django.db.models.functions import Coalesce, Now
from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_GET

from webapp.http import Request
from webapp.runs.comparison import MAX_RUNS, colours, differences, metrics, shared_prompts, summary
from webapp.runs.models import Run

CHOICES = 60
SHOWN_FIRST = ("reward/mean", "entropy/mean")


def runs_for(request: Request) -> list[Run]:
    """Return the runs the address names, in its order, those this person may see."""
    ids = list(dict.fromkeys(item for item in request.GET.get("runs", "").split(",") if item))[:MAX_RUNS]
    lasted = Coalesce(F("ended_at"), Now()) - F("started_at")
    found = Run.objects.visible_to(request.user).select_related("owner").annotate(lasted=lasted).in_bulk(ids)
    return [found[run_id] for run_id in ids if run_id in found]


@require_GET
def compare(request: Request) -> HttpResponse:
    """Show the runs beside each other."""
    runs = runs_for(request)
    colour = colours(runs)
    names = metrics(runs)
    ids = [run.pk for run in runs]
    columns = [(run, colour[run.pk], _without(ids, run.pk)) for run in runs]
    rows = differences(runs) if len(runs) > 1 else []
    context = {
        "columns": columns,
        "differences": rows,
        "differing": sum(row.differs for row in rows),
        "summary": summary(runs, names),
        "names": names,
        "choices": _choices(request, ids),
        "ids": ids,
        "full": len(ids) >= MAX_RUNS,
        "page": _page(runs, colour, names),
    }
    return render(request, "runs/compare.html", context)


def _without(ids: list[str], gone: str) -> str:
    return ",".join(run_id for run_id in ids if run_id != gone)


def _choices(request: Request, ids: list[str]) -> list[Run]:
    runs = Run.objects.visible_to(request.user).active().exclude(pk__in=ids).exclude(started_at=None)
    return list(runs.only("id", "name", "state").order_by("-created_at")[:CHOICES])


def _page(runs: list[Run], colour: dict[str, int], names: list[str]) -> dict[str, Any]:
    """Return what the script needs: addresses and colours of the runs, the metrics there are."""
    return {
        "runs": [
            {
                "id": run.pk,
                "name": run.name,
                "colour": colour[run.pk],
                "alive": run.alive,
                "series": reverse("runs:series", args=[run.pk]),
                # The script puts the step in place of 0.
                "rollout": reverse("runs:rollout", args=[run.pk, 0]),
            }
            for run in runs
        ],
        "names": names,
        "first": [name for name in SHOWN_FIRST if name in names] or names[:2],
        "prompts": reverse("runs:compare_rollouts"),
    }


@require_GET
def rollouts(request: Request) -> JsonResponse:
    """Answer with the prompts that several of the runs have answered, and at which steps."""
    return JsonResponse({"prompts": shared_prompts(runs_for(request))})
