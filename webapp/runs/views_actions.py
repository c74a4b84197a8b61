"""What people ask of a run: a view calls one service and answers with the page's head; a redirect without htmx."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.views.decorators.http import require_POST

from webapp.http import Request
from webapp.runs import services
from webapp.runs.models import Run
from webapp.runs.views_run import FRAGMENTS, run_for


def _said(error: ValidationError | PermissionDenied) -> str:
    return " ".join(error.messages) if isinstance(error, ValidationError) else str(error)


def _answer(request: Request, run: Run, error: str = "", status: int = 200) -> HttpResponse:
    """Answer with the head of the page; without htmx go back to the page and say it there."""
    if not request.htmx:
        if error:
            messages.error(request, error)
        return redirect("runs:detail", run.pk)
    run = run_for(request, run.pk)
    context = {"run": run, "error": error, **FRAGMENTS["header"](request, run)}
    return render(request, "runs/panels/_header.html", context, status=status)


def _go(request: Request, url: str) -> HttpResponse:
    return HttpResponse(headers={"HX-Redirect": url}) if request.htmx else HttpResponseRedirect(url)


def action(service: Callable[..., Any], finish: Callable[[Request, Run, Any], HttpResponse] | None = None) -> Any:
    """Return a view that calls `service(run=, user=)`; refusals become one sentence in the page's head."""

    @require_POST
    def view(request: Request, run_id: str) -> HttpResponse:
        run = run_for(request, run_id)
        try:
            result = service(run=run, user=request.user)
        except PermissionDenied as error:
            return _answer(request, run, _said(error), 403)
        except ValidationError as error:
            return _answer(request, run, _said(error), 422)
        return finish(request, run, result) if finish else _answer(request, run)

    return view


def _copied(request: Request, run: Run, copy: Run) -> HttpResponse:
    messages.success(request, f"{copy.name} is a draft; launch it when it is right.")
    return _go(request, reverse("runs:detail", args=[copy.pk]))


def _deleted(request: Request, run: Run, freed: int) -> HttpResponse:
    messages.success(request, f"{run.name} was deleted and {filesizeformat(freed)} of disk freed.")
    return _go(request, reverse("runs:list"))


launch = action(services.run_launch)
stop = action(services.run_request_stop)
kill = action(services.run_kill)
resume = action(services.run_resume)
archive = action(services.run_archive)
unarchive = action(services.run_unarchive)
duplicate = action(services.run_duplicate, _copied)
delete = action(services.run_delete, _deleted)


@require_POST
def rename(request: Request, run_id: str) -> HttpResponse:
    """Give the run another name."""
    run = run_for(request, run_id)
    try:
        services.run_rename(run=run, user=request.user, name=request.POST.get("name", ""))
    except (PermissionDenied, ValidationError) as error:
        return _answer(request, run, _said(error), 403 if isinstance(error, PermissionDenied) else 422)
    return _answer(request, run)


@require_POST
def steer(request: Request, run_id: str) -> HttpResponse:
    """Ask for another value of one knob; answer with the steering card."""
    run, name = run_for(request, run_id), request.POST.get("name", "")
    error, status, value = "", 200, None
    try:
        value = float(request.POST.get("value", "").replace(",", "."))
        services.run_steer(run=run, user=request.user, knobs={name: value})
    except ValueError:
        error, status = "Write a number.", 422
    except (PermissionDenied, ValidationError) as refused:
        error, status = _said(refused), 403 if isinstance(refused, PermissionDenied) else 422
    if not request.htmx:
        return _answer(request, run, error)
    run = run_for(request, run_id)
    context = {
        "run": run,
        "failed": name,
        "error": error,
        "unknown": name not in run.knobs,
        "typed": request.POST.get("value", ""),
        **FRAGMENTS["steering"](request, run),
    }
    response = render(request, "runs/panels/_steering.html", context, status=status)
    if not error:
        response["HX-Trigger"] = json.dumps({"run-steered": {"name": name, "value": value}})
    return response
