"""The settings a sweep can vary, and the objectives it starts from, as forms that only lack the values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from trainer.objectives import PRESETS, ObjectiveConfig
from webapp.runs.configform import Bound, Leaf, Rows
from webapp.runs.forms import RunForm

KINDS = ("integer", "number", "switch", "select")
OWN_AXIS = ("seed", "name")


@dataclass(frozen=True)
class Setting:
    """One input of a form: `path` names parts of lists by their type, `place` is the form's own path."""

    path: str
    place: str
    label: str
    spec: Leaf
    text: str


@dataclass
class Start:
    """An objective of the sweep: its key in names and tables, and the form of a run with it."""

    key: str
    title: str
    form: RunForm

    @cached_property
    def settings(self) -> dict[str, Setting]:
        found: dict[str, Setting] = {}
        for setting in _settings(self.form.bound, "", ""):
            # Of two parts of one type the first is meant.
            found.setdefault(setting.path, setting)
        return found


def starts(base: RunForm, presets: tuple[str, ...]) -> list[Start]:
    """Return the present objective and the presets beside it; one that is the present objective already is left out."""
    assert base.config is not None
    name = base.config.objective.preset
    changed = edited(base)
    title = PRESETS[name].title
    present = Start(f"{name} edited" if changed else name, f"{title}, edited" if changed else title, base)
    others = [preset for preset in PRESETS if preset in presets and (changed or preset != name)]
    return [present, *(Start(other, PRESETS[other].title, _with(base, other)) for other in others)]


def edited(base: RunForm) -> bool:
    """Tell whether the form's objective differs from its preset."""
    assert base.config is not None
    objective = base.config.objective
    return objective.model_dump() != ObjectiveConfig(preset=objective.preset).model_dump()


def _with(base: RunForm, preset: str) -> RunForm:
    return RunForm(base.data).swapped(f"preset:{preset}")


def _settings(bound: Bound, path: str, label: str) -> Iterator[Setting]:
    """Yield the inputs below a node that have numbers, on and off, or choices."""
    if isinstance(bound.spec, Leaf):
        if bound.spec.kind in KINDS and path not in OWN_AXIS and path != "objective.preset":
            yield Setting(path, bound.path, label, bound.spec, bound.text)
        return
    for child in bound.children:
        name, title = child.spec.name, child.spec.label
        if isinstance(bound.spec, Rows):
            name, title = child.tag, child.option.label if child.option else child.tag
        inner = title if not label or isinstance(bound.spec, Rows) else f"{label} › {title}"
        yield from _settings(child, f"{path}.{name}" if path else name, inner)
