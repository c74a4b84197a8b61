"""What the What-if panel reads: the table over all presets, one objective's tokens, the settings of a preset."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse, HttpResponseNotFound, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from trainer.errors import ConfigError
from webapp.catalog.methods import methods
from webapp.catalog.sliders import sliders
from webapp.http import Request
from webapp.runs import whatif
from webapp.runs.views_run import run_for

KINDS = {True: "application/json", False: "application/octet-stream"}


@require_GET
def table(request: Request, run_id: str, step: int) -> HttpResponse:
    """Answer with the rows of every preset; 202 with those so far while a worker is at it."""
    return _answer(request, run_id, step, None)


@require_GET
def tokens(request: Request, run_id: str, step: int) -> HttpResponse:
    """Answer with what one objective does to each token (trainer/whatif/packing.py); 202 until it is there."""
    return _answer(request, run_id, step, request.GET.get("objective", ""))


@require_GET
def settings(request: Request, run_id: str) -> HttpResponse:
    """Answer with the controls of a preset's numbers."""
    run = run_for(request, run_id)
    method = next((method for method in methods() if method.name == request.GET.get("preset")), None)
    if method is None:
        return HttpResponseNotFound("There is no such preset.", content_type="text/plain")
    return render(
        request, "runs/panels/_whatif_settings.html", {"run": run, "method": method, "parts": sliders(method)}
    )


def _answer(request: Request, run_id: str, step: int, text: str | None) -> HttpResponse:
    run = run_for(request, run_id)
    try:
        objective = None if text is None else whatif.objective_of(text)
        found = whatif.answer(run, whatif.question(run, step, objective))
    except ConfigError as error:
        return _problem(str(error), error.field, 422)
    except FileNotFoundError:
        return _problem(f"The rollouts of step {step} were not recorded.", "", 404)
    if isinstance(found, bytes):
        response = HttpResponse(found, content_type=KINDS[objective is None])
        response["Cache-Control"] = "private, no-cache"
        return response
    if found["state"] == whatif.FAILED:
        return _problem(found["problem"], found["field"], 422)
    return JsonResponse(found, status=202)


def _problem(text: str, field: str, status: int) -> JsonResponse:
    answer: dict[str, Any] = {"problem": text, "field": field}
    return JsonResponse(answer, status=status)
