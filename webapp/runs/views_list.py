"""The list of runs: one page of it, its fragments, and what can be done to several runs at once."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import CharField, F, Func, Value
from django.db.models.functions import Coalesce, Now
from django.http import HttpResponse, HttpResponseBadRequest, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_GET, require_POST

from webapp.http import Request
from webapp.runs import services
from webapp.runs.filters import ENTROPY, GROUPS, PAGE_SIZE, REWARD, RunFilter, latest, state_counts
from webapp.runs.models import Run, RunQuerySet
from webapp.runs.sweeps.groups import PREFIX, expand, groups, heads
from webapp.runs.sweeps.table import open_tables

MAX_BULK = 500
MAX_TAGS = 20
OPEN = "isentrope_open_sweeps"  # cookie: ids of the sweeps that a person folded open, joined by dots
# What a row of the list shows; the large JSON columns stay in the database.
COLUMNS = (
    "id",
    "name",
    "tags",
    "objective",
    "task",
    "model",
    "state",
    "waiting_reason",
    "failure",
    "heartbeat_at",
    "archived_at",
    "owner__username",
    "sweep__name",
    "sweep__created_at",
)
PROGRESS = (
    "created_at",
    "started_at",
    "ended_at",
    "step",
    "total_steps",
    "phase",
    "phase_done",
    "phase_total",
    "spark_reward",
    "spark_entropy",
)
HEADINGS = (
    ("name", "Name", ""),
    ("state", "State", ""),
    ("reward", "Reward", "text-end"),
    ("entropy", "Entropy", "text-end"),
    ("step", "Step", "text-end"),
    ("", "Objective", ""),
    ("", "Task", "d-none d-xl-table-cell"),
    ("", "Owner", "d-none d-lg-table-cell"),
    ("duration", "Duration", "text-end d-none d-md-table-cell"),
    ("created", "Created", "text-end"),
)


@dataclass
class Heading:
    """A column's head: its link, and the way it sorts now (`ascending`, `descending` or nothing)."""

    label: str
    css: str
    url: str = ""
    order: str = ""


@require_GET
def run_list(request: Request) -> HttpResponse:
    """Show one page; htmx gets the table alone, and the address bar the filter's own URL."""
    wanted = RunFilter.read(request.GET)
    context = table(request, wanted)
    if request.htmx and not request.htmx.history_restore_request:
        response = render(request, "runs/_run_table.html", context)
        address = request.path + wanted.url().removesuffix("?") if wanted.url() != "?" else request.path
        if address != request.htmx.current_url_abs_path:
            response["HX-Push-Url"] = address
        return response
    return render(request, "runs/run_list.html", context | facets(request))


def table(request: Request, wanted: RunFilter) -> dict[str, Any]:
    """Return what the table's template needs: two queries, two more where sweeps are on the page."""
    runs = Run.objects.visible_to(request.user)
    counts, total = state_counts(wanted.everything(runs), wanted.states)
    pages = max(1, ceil(total / PAGE_SIZE))
    page = min(wanted.page, pages)
    first = (page - 1) * PAGE_SIZE
    # The page first, then what its rows show: PostgreSQL would read the figures of all runs before it sorts.
    page_ids = heads(wanted, runs).values("pk")[first : first + PAGE_SIZE]
    shown = list(rows(wanted.select(runs.filter(pk__in=page_ids))))
    grouped = groups(wanted, runs, shown)
    tables = open_tables([sweep for sweep in request.COOKIES.get(OPEN, "").split(".") if sweep in grouped])
    return {
        "filter": wanted,
        "rows": [(run, grouped.get(run.sweep_id or ""), tables.get(run.sweep_id or "")) for run in shown],
        "headings": [heading(wanted, *item) for item in HEADINGS],
        "tabs": [
            (
                name,
                counts[name],
                wanted.url(state="" if name == "all" else name, page=1),
                (wanted.state or "all") == name,
            )
            for name in ("all", *GROUPS)
        ],
        "total": total,
        "runs_total": counts.get(wanted.state or "all", total),
        "page": page,
        "pages": pages,
        "first": first + 1,
        "last": min(first + PAGE_SIZE, total),
        "newer": wanted.url(page=page - 1) if page > 1 else "",
        "older": wanted.url(page=page + 1) if page < pages else "",
    }


def rows(runs: RunQuerySet) -> RunQuerySet:
    """Return the runs with only what a row shows."""
    lasted = Coalesce(F("ended_at"), Now()) - F("started_at")
    return (
        runs.select_related("owner", "sweep")
        .only(*COLUMNS, *PROGRESS)
        .annotate(reward=latest(REWARD), entropy=latest(ENTROPY), lasted=lasted)
    )


def heading(wanted: RunFilter, column: str, label: str, css: str) -> Heading:
    if not column:
        return Heading(label, css)
    order = {column: "ascending", f"-{column}": "descending"}.get(wanted.sort, "")
    return Heading(label, css, wanted.sorted_by(column), order)


def facets(request: Request) -> dict[str, list[str]]:
    """Return the values that runs have, for the filters' menus; one query."""
    runs = Run.objects.visible_to(request.user).order_by()

    def values(kind: str, expression: Any) -> RunQuerySet:
        return runs.values_list(Value(kind, CharField()), expression).distinct()

    tags = values("tags", Func(F("tags"), function="unnest", output_field=CharField()))
    parts = [
        values("owners", F("owner__username")),
        values("objectives", F("objective")),
        values("tasks", F("task")),
        values("models", F("model")),
    ]
    found: dict[str, list[str]] = {name: [] for name in ("tags", "owners", "objectives", "tasks", "models")}
    for kind, value in tags.union(*parts, all=True):
        if value:
            found[kind].append(value)
    return {name: sorted(items) for name, items in found.items()}


@require_POST
def bulk(request: Request) -> HttpResponse:
    """Compare, tag, archive or delete the chosen runs; refusals are told one by one, the rest is done."""
    chosen = list(dict.fromkeys(request.POST.getlist("runs")))
    action = request.POST.get("action", "")
    if action == "compare" and len(chosen) == 1 and chosen[0].startswith(PREFIX):
        return redirect(f"{reverse('runs:compare')}?sweep={chosen[0].removeprefix(PREFIX)}")
    # What was chosen is what the list showed: of a sweep the members that its filter let through.
    shown = RunFilter.read(QueryDict(urlsplit(request.POST.get("next", "")).query))
    ids = expand(chosen, shown, Run.objects.visible_to(request.user))[:MAX_BULK]
    if action == "compare":
        return redirect(f"{reverse('runs:compare')}?runs={','.join(ids[:8])}")
    if action not in BULK:
        return HttpResponseBadRequest("Unknown action.")
    from django.contrib import messages

    done, refused = 0, []
    for run in Run.objects.visible_to(request.user).filter(pk__in=ids):
        try:
            BULK[action](request, run)
            done += 1
        except (ValidationError, PermissionDenied) as error:
            refused.append(f"{run.name}: {' '.join(getattr(error, 'messages', [str(error)]))}")
    if done:
        messages.success(request, f"{DONE[action]} {done} run{'' if done == 1 else 's'}.")
    for message in refused[:5]:
        messages.error(request, message)
    if len(refused) > 5:
        messages.error(request, f"{len(refused) - 5} more runs were left as they are.")
    return redirect(back(request))


def back(request: Request) -> str:
    """Return the list as it was before the action."""
    url = request.POST.get("next", "")
    return url if url_has_allowed_host_and_scheme(url, {request.get_host()}) else reverse("runs:list")


def _tag(request: Request, run: Run) -> None:
    run_tag(run, request, [*run.tags, *read_tags(request.POST.get("tag", ""))])


BULK = {
    "archive": lambda request, run: services.run_archive(run=run, user=request.user),
    "unarchive": lambda request, run: services.run_unarchive(run=run, user=request.user),
    "delete": lambda request, run: services.run_delete(run=run, user=request.user),
    "tag": _tag,
}
DONE = {"archive": "Archived", "unarchive": "Took out of the archive", "delete": "Deleted", "tag": "Tagged"}


@require_POST
def tags(request: Request, run_id: str) -> HttpResponse:
    """Set one run's tags; answer with its row's tags as they now are."""
    run = get_object_or_404(Run.objects.visible_to(request.user).defer("config"), pk=run_id)
    run_tag(run, request, read_tags(request.POST.get("tags", "")))
    return render(request, "runs/_tags.html", {"run": run}) if request.htmx else redirect(back(request))


def read_tags(text: str) -> list[str]:
    """Return the tags of a comma-separated line."""
    return [tag.strip() for tag in text.replace("\x00", "").split(",") if tag.strip()]


def run_tag(run: Run, request: Request, wanted: list[str]) -> None:
    """Keep tags without repeats; people tag their own runs, maintainers all."""
    if not request.user.can("launch" if run.owner_id == request.user.pk else "manage"):
        raise PermissionDenied(f"{request.user.username} may not tag this run; ask its owner or a maintainer.")
    run.tags = list(dict.fromkeys(tag[:40] for tag in wanted))[:MAX_TAGS]
    run.save(update_fields=["tags"])
