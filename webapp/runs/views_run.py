"""The run page and what its scripts read: series, events, rollouts, log, checkpoints, config."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from django.http import HttpResponse, HttpResponseBadRequest, HttpResponseNotFound, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.text import slugify
from django.views.decorators.http import require_GET

from webapp.http import Request
from webapp.runs import archive, config_text, data, logtail, story
from webapp.runs.knobs import knobs, refusal
from webapp.runs.memory_view import after_launch
from webapp.runs.messages import event_message, events_after, run_message
from webapp.runs.models import Run, State
from webapp.runs.panels import ENTROPY_CHART, ENTROPY_KNOB, panels

TABS = ("overview", "rollouts", "evaluation", "checkpoints", "timeline", "config", "log")
EVENTS_PER_ANSWER = 5000
MAX_POINTS = 20_000


def run_for(request: Request, run_id: str) -> Run:
    """Return the run if this person may see it; raises Http404 for strangers."""
    return get_object_or_404(Run.objects.visible_to(request.user).select_related("owner", "parent"), pk=run_id)


def _header(request: Request, run: Run) -> dict[str, Any]:
    user = request.user
    mine = user.can("launch") if run.owner_id == user.pk else user.can("manage")
    return {
        "may_act": mine,
        "may_copy": user.can("launch"),
        "queued": run.state == State.QUEUED,
        "message": run_message(run),
        "failure_log": logtail.clean(run.failure_log),
    }


def _steering(request: Request, run: Run) -> dict[str, Any]:
    why = refusal(run) or (
        "" if _header(request, run)["may_act"] else "Only its owner or a maintainer may steer this run."
    )
    return {"knobs": knobs(run), "refusal": why}


def _checkpoints(request: Request, run: Run) -> dict[str, Any]:
    rows = list(run.checkpoints.all())
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    shown = [name for name in names if name in CHECKPOINT_FIRST or name.startswith(data.EVALUATION)] or names
    return {"names": shown[:8], "checkpoints": [(row, [row.metrics.get(name) for name in shown[:8]]) for row in rows]}


CHECKPOINT_FIRST = ("reward/mean", "entropy/mean")
# Parts of the page that are fetched again by themselves, each with what its template needs.
FRAGMENTS = {
    "header": _header,
    "steering": _steering,
    "checkpoints": _checkpoints,
    "timeline": lambda request, run: {"timeline": story.timeline(run)},
    "evaluation": lambda request, run: {"evaluations": story.evaluations(run)},
}


@require_GET
def detail(request: Request, run_id: str) -> HttpResponse:
    """Show the page, or one of its fragments for `?panel=`."""
    run = run_for(request, run_id)
    wanted = request.GET.get("panel")
    if wanted is not None:
        if wanted not in FRAGMENTS:
            return HttpResponseNotFound("There is no such panel.")
        return render(request, f"runs/panels/_{wanted}.html", {"run": run, **FRAGMENTS[wanted](request, run)})
    tab = request.GET.get("tab")
    context = {"run": run, "tab": tab if tab in TABS else "overview", "tabs": TABS, "page": page_data(run)}
    for fragment in FRAGMENTS.values():
        context |= fragment(request, run)
    context |= {
        "toml": config_text.toml(run),
        "command": config_text.command(run),
        "changes": config_text.differences(run),
        "memory": after_launch(run),
        "computing": story.computing(run),
        "rollout_server": run.config.get("sampling", {}).get("server", {}),
    }
    return render(request, "runs/run_detail.html", context)


def page_data(run: Run) -> dict[str, Any]:
    """Return what the page's scripts start from."""
    started = run.events.filter(type="started").order_by("-seq").first()
    url = {name: reverse(f"runs:{name}", args=[run.pk]) for name in ("series", "events", "rollouts", "log")}
    names = {"whatif": "whatif", "tokens": "whatif_tokens"}
    what = {name: reverse(f"runs:{view}", args=[run.pk, 0]) for name, view in names.items()}
    url["whatif"] = {**what, "settings": reverse("runs:whatif_settings", args=[run.pk])}
    return {
        "run": run_message(run),
        "urls": {**url, "rollout": reverse("runs:rollout", args=[run.pk, 0]), "socket": f"/ws/runs/{run.pk}/"},
        "panels": panels(run, started.data.get("plan") if started else None),
        "markers": [event_message(event) for event in story.marked(run)],
        "names": list(run.summary),
        "vocabulary": started.data.get("vocabulary", 0) if started else 0,
        "target": {"knob": ENTROPY_KNOB, "chart": ENTROPY_CHART, "pending": _pending_target(run)},
    }


def _pending_target(run: Run) -> float | None:
    return next((knob.pending for knob in knobs(run) if knob.name == ENTROPY_KNOB), None)


@require_GET
def series(request: Request, run_id: str) -> HttpResponse:
    """Answer with the points of some metrics, thinned to what a chart can show."""
    run = run_for(request, run_id)
    try:
        points = int(request.GET.get("points", 800))
        first, last = (int(request.GET[key]) if key in request.GET else None for key in ("from", "to"))
    except ValueError:
        return HttpResponseBadRequest("points, from and to must be whole numbers.")
    names = [name for name in dict.fromkeys(request.GET.get("names", "").split(",")) if name]
    points = min(max(points, 10), MAX_POINTS)
    return JsonResponse(data.series(run, names, points=points, first=first, last=last))


@require_GET
def events(request: Request, run_id: str) -> HttpResponse:
    """Answer with the events after a seq, one JSON line each."""
    run = run_for(request, run_id)
    after = request.GET.get("after", "0")
    if not after.isascii() or not after.isdigit() or len(after) > 18:
        return HttpResponseBadRequest("after must be the number of an event.")
    lines = [
        json.dumps(event, ensure_ascii=False) + "\n" for event in events_after(run.pk, int(after), EVENTS_PER_ANSWER)
    ]
    return HttpResponse("".join(lines), content_type="application/x-ndjson")


@require_GET
def rollouts(request: Request, run_id: str) -> HttpResponse:
    """Answer with the list of recorded steps."""
    return JsonResponse({"steps": data.rollout_index(run_for(request, run_id))})


@require_GET
def rollout(request: Request, run_id: str, step: int) -> HttpResponse:
    """Answer with the bundle of one step; its address with the right `v` never changes its content."""
    run = run_for(request, run_id)
    path = run.folder.rollout_file(step)
    try:
        status = path.stat()
        etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        if request.headers.get("If-None-Match") == etag:
            response = HttpResponse(status=304)
        else:
            response = HttpResponse(data.rollout_bundle(path, step), content_type="application/octet-stream")
    except FileNotFoundError:
        return HttpResponseNotFound(f"The rollouts of step {step} were not recorded.", content_type="text/plain")
    except ValueError as error:
        return HttpResponse(str(error).capitalize(), status=500, content_type="text/plain; charset=utf-8")
    response["ETag"] = etag
    newest = run.events.filter(type="rollouts", step=step).order_by("-seq").values_list("seq", flat=True).first()
    fixed = newest is not None and request.GET.get("v") == str(newest)
    response["Cache-Control"] = "private, max-age=31536000, immutable" if fixed else "private, no-cache"
    return response


@require_GET
def log(request: Request, run_id: str) -> HttpResponse:
    """Answer with the end of a log (`of`: trainer or server), or what follows `offset`; the next is in the headers."""
    run = run_for(request, run_id)
    offset, of = request.GET.get("offset"), request.GET.get("of", "trainer")
    logs = {"trainer": run.folder.log, "server": run.folder.server_log}
    if of not in logs:
        return HttpResponseBadRequest("of must be trainer or server.")
    if offset is not None and not (offset.isascii() and offset.isdigit() and len(offset) <= 18):
        return HttpResponseBadRequest("offset must be a number of bytes.")
    found = logtail.tail(logs[of], None if offset is None else int(offset))
    headers = {
        "X-Log-Start": found.start,
        "X-Log-Next": found.next,
        "X-Log-More": int(found.more),
        "Cache-Control": "no-store",
    }
    return HttpResponse(found.text, content_type="text/plain; charset=utf-8", headers=headers)


@require_GET
def checkpoint(request: Request, run_id: str, step: int) -> StreamingHttpResponse | HttpResponse:
    """Stream a checkpoint as one tar that `from_pretrained` reads after unpacking."""
    run = run_for(request, run_id)
    name = f"{slugify(run.name)[:60] or 'run'}-{run.pk}-step-{step}"
    try:
        files = archive.members(run.folder.checkpoint(step), name)
    except FileNotFoundError:
        text = f"There is no complete checkpoint of step {step}; it was pruned, or is being written."
        return HttpResponseNotFound(text, content_type="text/plain")
    response = StreamingHttpResponse(archive.stream(files), content_type="application/x-tar")
    response["Content-Length"] = archive.length(files)
    response["Content-Disposition"] = f'attachment; filename="{quote(name)}.tar"'
    return response


@require_GET
def config(request: Request, run_id: str) -> HttpResponse:
    """Answer with the resolved config as a file."""
    run = run_for(request, run_id)
    headers = {"Content-Disposition": f'attachment; filename="{run.pk}.toml"'}
    return HttpResponse(config_text.toml(run), content_type="application/toml; charset=utf-8", headers=headers)
