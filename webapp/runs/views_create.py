"""The new-run page: the form, its live checks and previews, and the launch."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from trainer.config import RunConfig, to_toml
from trainer.objectives import PARTS, PRESETS
from trainer.objectives.config import EXCLUSIVE
from webapp.catalog.models import Dataset
from webapp.http import Request
from webapp.local.demo import demo_run_ensure
from webapp.runs import checks, services
from webapp.runs.configform import Bound
from webapp.runs.course import course_of
from webapp.runs.forms import OTHER_MODEL, RunForm
from webapp.runs.memory_view import before_launch
from webapp.runs.models import Run, Sweep
from webapp.runs.start import starting_config
from webapp.runs.sweeps import create as create_sweep
from webapp.runs.sweeps.create import SweepForm
from webapp.runs.trainable import untrainable

# The fields of the form that the page draws itself, and the order of the rest.
TRAINING = ("sampling", "optimiser")
KEEPING = ("evaluation", "checkpoint", "recording")


@dataclass(frozen=True)
class PartCard:
    """One part of the objective on the page: its form and what may take its place."""

    bound: Bound
    stage: str
    alternatives: list[tuple[str, str]]
    removable: bool


def _may_launch(request: Request) -> None:
    if not request.user.can("launch"):
        raise PermissionDenied(f"{request.user.username} may not launch runs; ask an admin for the role of a member.")


@require_http_methods(["GET", "POST"])
async def create(request: Request) -> HttpResponse:
    """Show the form; on POST keep a draft or launch, or show what is wrong beside its field."""
    await sync_to_async(_may_launch)(request)
    if request.method == "GET":
        return await sync_to_async(_show_start)(request)
    form = await sync_to_async(_judged)(request)
    if form.op:
        return await sync_to_async(_page)(request, form, 200)
    sweep = await sync_to_async(SweepForm.of)(form)
    if sweep.typed.on:
        return await _create_sweep(request, form, sweep)
    tried = None
    if form.ready and request.POST.get("action") == "launch":
        tried = await checks.deep(form.ready)
        form.refuse(tried.problems)
    if form.ready is None:
        return await sync_to_async(_page)(request, form, 422, tried)
    return await sync_to_async(_save)(request, form.ready)


async def _create_sweep(request: Request, form: RunForm, sweep: SweepForm) -> HttpResponse:
    """Make all members or show what keeps which of them from running."""
    launch = request.POST.get("action") == "launch"
    if sweep.plan and sweep.plan.ready and launch:
        await create_sweep.try_inputs(sweep.plan)
    if not sweep.plan or not sweep.plan.ready:
        return await sync_to_async(_page)(request, form, 422, sweep=sweep)
    made = await sync_to_async(create_sweep.save)(form, sweep.plan, user=request.user, launch=launch)
    if made is None:
        return await sync_to_async(_page)(request, form, 422, sweep=sweep)
    return redirect("runs:sweep", made.pk)


def _save(request: Request, config: RunConfig) -> HttpResponse:
    parent = Run.objects.visible_to(request.user).filter(pk=request.POST.get("parent", "")).first()
    run = services.run_create(user=request.user, config=config, parent=parent)
    if request.POST.get("action") == "launch":
        try:
            services.run_launch(run=run, user=request.user)
        except ValidationError as error:
            run.delete()
            form = RunForm.of(config)
            form.refuse({"": " ".join(error.messages)})
            return _page(request, form, 422)
    return redirect("runs:detail", run.pk)


def _judged(request: Request) -> RunForm:
    """Return the posted form after its operation, if any, judged by itself and by what files and rows can tell."""
    return _looked_at(RunForm.posted(request.POST.items(), op=request.POST.get("op", "")))


def _looked_at(form: RunForm) -> RunForm:
    if form.config:
        form.checked = checks.quick(form.config)
        form.refuse(form.checked.problems)
    return form


def _show_start(request: Request) -> HttpResponse:
    parent = None
    if again := request.GET.get("sweep"):
        form = create_sweep.form_of(get_object_or_404(Sweep.objects.visible_to(request.user), pk=again))
    elif copy := request.GET.get("copy"):
        parent = get_object_or_404(Run.objects.visible_to(request.user), pk=copy)
        form = RunForm.of_values(parent.config)
        form.data["name"] = ""
    else:
        form = RunForm.of(starting_config(request.GET))
    return _page(request, _looked_at(form), 200, parent=parent)


def _page(
    request: Request,
    form: RunForm,
    status: int,
    tried: checks.Checked | None = None,
    parent: Run | None = None,
    sweep: SweepForm | None = None,
) -> HttpResponse:
    context = (
        page_context(form)
        | panel_context(form, sweep or SweepForm.of(form))
        | {"tried": tried, "parent": parent, "parent_id": parent.pk if parent else request.POST.get("parent", "")}
    )
    return render(request, "runs/run_create.html", context, status=status)


def page_context(form: RunForm) -> dict[str, Any]:
    """Return what the whole page needs besides the side panel."""
    return {
        "form": form,
        "name": form.section("name"),
        "seed": form.section("seed"),
        "model": form.section("model"),
        "task": form.section("task"),
        "rewards": form.section("rewards"),
        "training": [form.section(name) for name in TRAINING],
        "keeping": [form.section(name) for name in KEEPING],
        "resources": form.section("resources"),
        "gpus": checks.gpu_count(),
        "datasets": usable_datasets(),
        **model_context(form),
        **objective_context(form),
    }


def usable_datasets() -> list[Dataset]:
    return list(Dataset.objects.exclude(prompt_column="").exclude(answer_column="").defer("stats", "columns")[:100])


def model_context(form: RunForm) -> dict[str, Any]:
    source = form.data.get("model.source", "")
    known = checks.catalogue()
    return {
        "models": known,
        "source": source,
        "other": OTHER_MODEL,
        "is_other": all(source != info.source for info in known),
    }


def objective_context(form: RunForm) -> dict[str, Any]:
    """Return presets, the chosen one's parts in their order, and the parts that may be added."""
    name = form.data.get("objective.preset", "")
    parts = form.section("objective.parts").children
    used = {part.tag for part in parts}
    addable = [
        (tag, kind.title or tag, kind.stage.replace("_", " "))
        for tag, kind in PARTS.items()
        if tag not in used and kind.stage not in EXCLUSIVE
    ]
    return {
        "presets": [(preset, untrainable().get(preset.name, "")) for preset in PRESETS.values()],
        "preset": PRESETS.get(name),
        "preset_name": name,
        "preset_field": form.section("objective.preset"),
        "parts": [part_card(part, part.path in form.added_parts) for part in parts],
        "parts_field": form.section("objective.parts"),
        "addable": addable,
        "course": course_of(form.config.objective, form.config.optimiser.steps) if form.config else None,
    }


def part_card(bound: Bound, removable: bool) -> PartCard:
    kind = PARTS.get(bound.tag)
    stage = kind.stage if kind else ""
    alternatives = (
        [(tag, other.title or tag) for tag, other in PARTS.items() if other.stage == stage]
        if stage in EXCLUSIVE
        else []
    )
    return PartCard(bound, stage.replace("_", " "), alternatives if len(alternatives) > 1 else [], removable)


def panel_context(form: RunForm, sweep: SweepForm) -> dict[str, Any]:
    """Return what the side panel shows: problems, derived numbers, the resolved file and its command."""
    config = form.config
    said = {
        "form": form,
        "sweep": sweep,
        "problems": form.problems + sweep.problems,
        "errors_json": json.dumps(form.errors | sweep.errors),
    }
    if config is None:
        return said
    return said | {
        "config": config,
        "estimate": form.checked.estimate if form.checked else None,
        "memory": before_launch(form.checked.estimate) if form.checked else None,
        "warnings": form.checked.warnings if form.checked else [],
        "processes": config.resources.gpus or config.resources.processes,
        "toml": to_toml(config),
        "command": command_of(config),
    }


def command_of(config: RunConfig) -> str:
    """Return the shell command that does the same without the web app."""
    name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in config.name.strip()) or "config"
    processes = config.resources.gpus or config.resources.processes
    if processes > 1:
        return f"accelerate launch --num_processes {processes} -m trainer run {shlex.quote(name)}.toml"
    return f"python -m trainer run {shlex.quote(name)}.toml"


@require_POST
def check(request: Request) -> HttpResponse:
    """Judge the form as it stands: the panel and messages anew, and the one part that an operation changed."""
    _may_launch(request)
    form = _judged(request)
    verb, _, rest = form.op.partition(":")
    path = rest.partition(":")[0]
    objective = verb == "preset" or path.startswith("objective")
    context = panel_context(form, SweepForm.of(form)) | objective_context(form) | {"swap_objective": objective}
    if verb and not objective:
        context["swap"] = form.section(path.rpartition(".")[0] if verb == "remove" else path)
        context["datasets"] = usable_datasets()
    return render(request, "runs/_create_check.html", context)


@require_POST
async def try_out(request: Request) -> HttpResponse:
    """Try the reward on three rows of the data, in a trainer of its own."""
    await sync_to_async(_may_launch)(request)
    form = await sync_to_async(_judged)(request)
    tried = None
    if form.ready:
        tried = await checks.deep(form.ready)
        form.refuse(tried.problems)
    context = await sync_to_async(lambda: panel_context(form, SweepForm.of(form)) | {"tried": tried, "asked": True})()
    return await sync_to_async(render)(request, "runs/_create_tried.html", context)


@require_POST
def demo(request: Request) -> HttpResponse:
    """Launch the demo run, or go to the one under way."""
    _may_launch(request)
    return redirect("runs:detail", demo_run_ensure(user=request.user).pk)
