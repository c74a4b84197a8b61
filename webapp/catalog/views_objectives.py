"""The objective catalogue: the list, a page for each method with its live picture, the building blocks."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.http import Http404, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from trainer.errors import ConfigError
from trainer.objectives import PARTS, PRESETS, STAGES
from trainer.objectives.picture import natural_scene
from trainer.objectives.preview import describe_part, fields_of, part_words
from trainer.statistics import STATISTICS
from webapp.catalog import pictures
from webapp.catalog.methods import CONFIDENCES, FACETS, SORTS, Method, MethodFilter, methods
from webapp.catalog.sliders import scene_controls, sliders
from webapp.http import Request
from webapp.runs.course import course_of
from webapp.runs.models import Run

SCHEDULE_STEPS = 100  # of the drawn courses: shares of a run in percent
LARGEST_QUESTION = 32 << 10  # bytes


@require_GET
def objectives(request: Request) -> HttpResponse:
    """List the methods a search and facets leave; htmx gets the list with its counts alone."""
    wanted = MethodFilter.read(request.GET)
    found = wanted.select()
    context = {
        "filter": wanted,
        "found": found,
        "total": len(methods()),
        "groups": wanted.groups(found),
        "facets": [(facet, wanted.choices(facet)) for facet in FACETS],
        "sorts": SORTS,
    }
    if not request.htmx or request.htmx.history_restore_request:
        return render(request, "catalog/objectives.html", context)
    response = render(request, "catalog/_objective_list.html", context)
    response["HX-Replace-Url"] = request.path + wanted.url()
    return response


@require_GET
def objective(request: Request, name: str) -> HttpResponse:
    """Show one method: formula, picture, pipeline, statistics, source, and the lab's runs with it."""
    method = method_of(name)
    runs = Run.objects.visible_to(request.user).filter(objective=name)
    controls = sliders(method)
    context = {
        "method": method,
        "preset": method.preset,
        "confidence": CONFIDENCES[method.preset.confidence],
        "parts": [_part(method, part) for part in method.config.parts],
        "related": [other for other in methods() if other.preset.family == method.preset.family and other != method],
        "course": course_of(method.config, SCHEDULE_STEPS),
        "runs": runs.count(),
        "latest": runs.order_by("-created_at").only("id", "name", "state")[:5],
        "sliders": controls,
        "more": any(group.folded for group in controls),
        "scene": scene_controls(method, natural_scene(method.config)),
    }
    return render(request, "catalog/objective.html", context)


def _part(method: Method, part: Any) -> dict[str, Any]:
    own = {item.type for item in method.own}
    return {
        **describe_part(part),
        "own": part.type in own,
        "statistics": [STATISTICS[name] for name in STATISTICS if name in part.reads()],
    }


@require_POST
def picture(request: Request, name: str) -> JsonResponse:
    """Answer with the picture, 202 while a worker draws it, 422 with what is wrong in which field."""
    method_of(name)
    try:
        question = json.loads(request.body) if len(request.body) <= LARGEST_QUESTION else None
        config, scene = pictures.read(name, question)
    except (ValueError, RequestDataTooBig):
        return JsonResponse({"problem": "Send JSON.", "field": ""}, status=400)
    except ConfigError as error:
        return JsonResponse({"problem": str(error), "field": error.field}, status=422)
    answer = pictures.picture_of(config, scene)
    if answer is None:
        return JsonResponse({}, status=202)
    return JsonResponse(answer | {"field": ""}, status=422 if "problem" in answer else 200)


@require_GET
def blocks(request: Request) -> HttpResponse:
    """Show every part by stage, also those no method uses, with the methods that do."""
    users: dict[str, list[str]] = defaultdict(list)
    for preset in PRESETS.values():
        for part in preset.parts:
            users[part["type"]].append(preset.name)
    stages = []
    for stage in STAGES:
        kinds = [(name, kind) for name, kind in PARTS.items() if kind.stage == stage]
        found = [
            {
                "type": name,
                "title": part_words(kind)[0],
                "text": part_words(kind)[1],
                "formula": kind.formula,
                "paper": kind.paper,
                "fields": fields_of(kind),
                "users": users[name],
                "statistics": [STATISTICS[item] for item in STATISTICS if item in kind.needs],
            }
            for name, kind in kinds
        ]
        if found:
            stages.append((stage, found))
    return render(request, "catalog/blocks.html", {"stages": stages, "total": len(PARTS)})


def method_of(name: str) -> Method:
    """Return a method by name; raise Http404 where there is none."""
    found = next((method for method in methods() if method.name == name), None)
    if found is None:
        raise Http404(f"There is no objective {name}; see {reverse('catalog:objectives')}.")
    return found
