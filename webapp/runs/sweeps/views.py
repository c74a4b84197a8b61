"""The sweep's page, what its script reads, and what people ask of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpResponse, HttpResponseNotFound, HttpResponseRedirect, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from webapp.http import Request
from webapp.runs.filters import ENTROPY, REWARD
from webapp.runs.models import State, Sweep
from webapp.runs.sweeps import services
from webapp.runs.sweeps.axes import Axes
from webapp.runs.sweeps.curves import curves
from webapp.runs.sweeps.table import Table, described, members, progress_of, table

PANELS = ("fold", "live")
PLOTS = ((REWARD, "Reward"), (ENTROPY, "Entropy (nats)"))


def sweep_for(request: Request, sweep_id: str) -> Sweep:
    """Return the sweep if this person may see it; raises Http404 for strangers."""
    return get_object_or_404(Sweep.objects.visible_to(request.user).select_related("owner"), pk=sweep_id)


def may_act(request: Request, sweep: Sweep) -> bool:
    return request.user.can("launch" if sweep.owner_id == request.user.pk else "manage")


@require_GET
def detail(request: Request, sweep_id: str) -> HttpResponse:
    """Show the page, or for `?panel=` what changes on it while runs go on, or the table alone."""
    sweep, panel = sweep_for(request, sweep_id), request.GET.get("panel")
    if panel is not None and panel not in PANELS:
        return HttpResponseNotFound("There is no such panel.")
    context = live_context(request, sweep)
    if panel:
        return render(request, f"runs/sweeps/_{panel}.html", context)
    page = {
        "series": reverse("runs:sweep_series", args=[sweep.pk]),
        "plots": [{"name": name, "title": title} for name, title in PLOTS],
    }
    return render(request, "runs/sweeps/sweep.html", context | {"page": page})


def live_context(request: Request, sweep: Sweep) -> dict[str, Any]:
    runs = members([sweep.pk])
    progress = progress_of(runs)
    queued = [run.waiting_reason for run in runs if run.state == State.QUEUED and run.waiting_reason]
    return {
        "sweep": sweep,
        "table": table(sweep, runs),
        "runs": runs,
        "progress": progress,
        "described": described(Axes.model_validate(sweep.axes)),
        "failed": [run for run in runs if run.state in services.RERUN],
        # While some run, the others just wait for their turn.
        "waiting": [] if progress.count("running") else queued[:1],
        "drafts": progress.count("draft"),
        "archived": bool(runs) and all(run.archived_at for run in runs),
        "started": any(run.started_at for run in runs),
        "may_act": may_act(request, sweep),
        "may_copy": request.user.can("launch"),
        "disk": sum(run.disk_bytes for run in runs),
    }


def legend(shown: Table) -> list[dict[str, Any]]:
    """Return the rows of the table as the plots draw them: one colour for the seeds of a row."""
    return [
        {
            "label": row.label,
            "colour": row.colour,
            "dash": row.dash,
            "runs": [{"id": run.pk, "name": run.name} for run in row.runs if run],
        }
        for row in shown.rows
    ]


@require_GET
def series(request: Request, sweep_id: str) -> JsonResponse:
    """Answer with reward and entropy of all members: {width, runs: {id: {metric: [steps, values]}}, groups}."""
    sweep = sweep_for(request, sweep_id)
    runs = members([sweep.pk])
    drawn = curves(runs, [name for name, _ in PLOTS])
    # With their groups: a run that failed may have been replaced by another meanwhile.
    return JsonResponse({"width": drawn.width, "runs": drawn.runs, "groups": legend(table(sweep, runs))})


# --- What people ask of it ------------------------------------------------------------------------------------------


def _answer(request: Request, sweep: Sweep, error: str = "", status: int = 200) -> HttpResponse:
    if not request.htmx:
        if error:
            messages.error(request, error)
        return redirect("runs:sweep", sweep.pk)
    context = live_context(request, sweep_for(request, sweep.pk))
    return render(request, "runs/sweeps/_live.html", context | {"error": error}, status=status)


def action(service: Callable[..., Any], finish: Callable[[Request, Sweep, Any], HttpResponse] | None = None) -> Any:
    """Return a view that calls `service(sweep=, user=)`; refusals become one sentence on the page."""

    @require_POST
    def view(request: Request, sweep_id: str) -> HttpResponse:
        sweep = sweep_for(request, sweep_id)
        try:
            result = service(sweep=sweep, user=request.user)
        except PermissionDenied as error:
            return _answer(request, sweep, str(error), 403)
        except ValidationError as error:
            return _answer(request, sweep, " ".join(error.messages), 422)
        return finish(request, sweep, result) if finish else _answer(request, sweep)

    return view


def _deleted(request: Request, sweep: Sweep, freed: int) -> HttpResponse:
    messages.success(request, f"{sweep.name} was deleted with its runs and {filesizeformat(freed)} of disk freed.")
    url = reverse("runs:list")
    return HttpResponse(headers={"HX-Redirect": url}) if request.htmx else HttpResponseRedirect(url)


launch = action(services.sweep_launch)
stop = action(services.sweep_request_stop)
rerun = action(services.sweep_rerun)
archive = action(services.sweep_archive)
unarchive = action(services.sweep_unarchive)
delete = action(services.sweep_delete, _deleted)


@require_POST
def rename(request: Request, sweep_id: str) -> HttpResponse:
    """Give the sweep and its members another name."""
    sweep = sweep_for(request, sweep_id)
    try:
        services.sweep_rename(sweep=sweep, user=request.user, name=request.POST.get("name", ""))
    except PermissionDenied as error:
        return _answer(request, sweep, str(error), 403)
    except ValidationError as error:
        return _answer(request, sweep, " ".join(error.messages), 422)
    return _answer(request, sweep)
