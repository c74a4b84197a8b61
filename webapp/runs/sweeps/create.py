"""The new-run form as a sweep: what its fields show, the checks before a launch, and the making of all runs at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction

from trainer.config import RunConfig
from trainer.objectives import PRESETS
from webapp.accounts.models import User
from webapp.runs import checks
from webapp.runs.forms import RunForm
from webapp.runs.models import Sweep
from webapp.runs.sweeps import services
from webapp.runs.sweeps.axes import MAX_MEMBERS, Axes
from webapp.runs.sweeps.duration import Duration, duration_of
from webapp.runs.sweeps.form import PARAMETERS, read_typed, write_axes
from webapp.runs.sweeps.plan import Fault, Plan, Typed, place_id, plan
from webapp.runs.trainable import untrainable

TRIED = 3  # different models or data of a sweep that are tried before its launch; the runs try the rest themselves


@dataclass
class SweepForm:
    """The sweep's fields; `plan` is there when it is wanted and the rest of the form holds."""

    typed: Typed
    plan: Plan | None = None
    duration: Duration | None = None

    @classmethod
    def of(cls, form: RunForm) -> SweepForm:
        typed = read_typed(form.data)
        if not typed.on or form.ready is None:
            return cls(typed)
        planned = plan(form, typed)
        return cls(typed, planned, duration_of(planned.cells, len(planned.axes.seeds)) if planned.ready else None)

    @property
    def errors(self) -> dict[str, str]:
        return self.plan.errors if self.plan else {}

    @property
    def problems(self) -> list[tuple[str, str, str]]:
        return self.plan.problems if self.plan else []

    @property
    def presets(self) -> list[tuple[Any, bool, str]]:
        """Return (preset, whether it is ticked, what keeps it from being trained) of all there are."""
        lacks = untrainable()
        return [(preset, preset.name in self.typed.presets, lacks.get(preset.name, "")) for preset in PRESETS.values()]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of varied settings, at least one to write into."""
        return [self._row(*row) for row in self.typed.rows or ((0, "", ""),)]

    @property
    def blank(self) -> dict[str, Any]:
        """Return a row for the page to copy; the script puts a number for INDEX."""
        return self._row("INDEX", "", "")

    def _row(self, index: int | str, path: str, values: str) -> dict[str, Any]:
        here = f"{PARAMETERS}.{index}"
        return {
            "path": here,
            "id": place_id(here),
            "setting": path,
            "values": values,
            "path_error": self.errors.get(f"{here}.path", ""),
            "values_error": self.errors.get(f"{here}.values", ""),
        }

    @property
    def settings(self) -> dict[str, str]:
        """Return {path: label} of what can be varied in any of the objectives."""
        found: dict[str, str] = {}
        for start in self.plan.starts if self.plan else ():
            for path, setting in start.settings.items():
                found.setdefault(path, setting.label)
        return found

    @property
    def most(self) -> int:
        return MAX_MEMBERS

    @property
    def seeds_error(self) -> str:
        return self.errors.get("sweep.seeds", "")

    @property
    def error(self) -> str:
        return self.errors.get("sweep", "")


def form_of(sweep: Sweep) -> RunForm:
    """Return the new-run form that makes the sweep once more."""
    form = RunForm.of_values(sweep.config)
    form.data |= write_axes(Axes.model_validate(sweep.axes))
    return form


async def try_inputs(planned: Plan) -> None:
    """Try model, data and reward of members that differ in them; what is found becomes a fault that names them."""
    for config, names in list(_inputs(planned))[:TRIED]:
        tried = await checks.deep(config)
        planned.faults += [Fault(field, text, names) for field, text in tried.problems.items()]


def _inputs(planned: Plan) -> list[tuple[RunConfig, list[str]]]:
    """Return (a config, the names of the members that share its model, data, reward and lengths)."""
    found: dict[str, tuple[RunConfig, list[str]]] = {}
    for member in planned.members:
        config, sampling = member.config, member.config.sampling
        key = config.model_dump_json(include={"model", "task", "rewards"})
        key += f"{sampling.max_prompt_tokens} {sampling.max_completion_tokens}"
        found.setdefault(key, (config, []))[1].append(member.name)
    return list(found.values())


def save(form: RunForm, planned: Plan, *, user: User, launch: bool) -> Sweep | None:
    """Make all runs or none; a refusal becomes the plan's error and None is returned."""
    assert form.config is not None
    try:
        with transaction.atomic():
            sweep = services.sweep_create(user=user, config=form.config, axes=planned.axes, members=planned.members)
            if launch:
                services.sweep_launch(sweep=sweep, user=user)
    except ValidationError as error:
        planned.errors["sweep"] = " ".join(error.messages)
        return None
    return sweep
