"""From what was typed to the members of a sweep: every run's name and config, or what is wrong with it and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

from trainer.config import RunConfig
from trainer.objectives import PRESETS
from webapp.runs import checks
from webapp.runs.forms import RunForm
from webapp.runs.sweeps.axes import (
    MAX_MEMBERS,
    MAX_PARAMETERS,
    Axes,
    Coordinates,
    Parameter,
    read_seeds,
    read_values,
    short_names,
)
from webapp.runs.sweeps.varied import Setting, Start, starts
from webapp.runs.templatetags.lists import size

NAME = 120  # characters of a run's name
FIELDS = {"seeds": "Seeds", "path": "Setting", "values": "Values", "sweep": "Sweep"}


@dataclass(frozen=True)
class Typed:
    """The sweep's fields of the new-run form as they were posted."""

    on: bool = False
    presets: tuple[str, ...] = ()
    seeds: str = ""
    rows: tuple[tuple[int, str, str], ...] = ()

    @property
    def parameters(self) -> list[tuple[int, str, tuple[str, ...]]]:
        """Return (row, path, values) of the rows in which something stands."""
        found = [(index, path.strip(), read_values(values)) for index, path, values in self.rows]
        return [(index, path, values) for index, path, values in found if path or values]


@dataclass(frozen=True)
class Member:
    """A run to be."""

    name: str
    coordinates: Coordinates
    config: RunConfig


@dataclass(frozen=True)
class Fault:
    """What keeps some members from running: the field's name, the sentence, and their names without the seed."""

    label: str
    text: str
    members: list[str]

    @property
    def who(self) -> str:
        """Return the members' names, the first three of many."""
        more = len(self.members) - 3
        return "; ".join(self.members[:3]) + (f" and {more} more" if more > 0 else "")


@dataclass
class Plan:
    """`errors` are by form path and concern the sweep's own fields; `faults` concern members."""

    axes: Axes = field(default_factory=Axes)
    members: list[Member] = field(default_factory=list)
    count: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)

    @property
    def cells(self) -> list[RunConfig]:
        """Return one config for all seeds of each objective and its values."""
        return [member.config for member in self.members[:: max(1, len(self.axes.seeds))]]

    @property
    def ready(self) -> bool:
        return bool(self.members) and not self.errors and not self.faults

    @property
    def title(self) -> str:
        return self.starts[0].title

    @property
    def present(self) -> str:
        """The preset that the form's own objective is, unedited; empty where it is edited."""
        return self.starts[0].key if self.starts[0].key in PRESETS else ""

    @property
    def problems(self) -> list[tuple[str, str, str]]:
        """Return (id of the field, its name, the sentence) as the form's own problems are listed."""
        own = [
            (place_id(path), FIELDS.get(path.rpartition(".")[2], ""), text)
            for path, text in self.errors.items()
            # A bad value is told beside it and, with the members that it stops, as a fault.
            if not (self.faults and path.endswith(".values"))
        ]
        return own + [("sweep-faults", fault.label, f"{fault.text} ({fault.who})") for fault in self.faults]


@dataclass(frozen=True)
class _Cell:
    """Members that differ in their seed alone."""

    start: Start
    values: dict[str, str]
    form: RunForm


def place_id(path: str) -> str:
    """Return the id of the element that shows a field of the sweep."""
    return "f-" + path.replace(".", "-")


def plan(base: RunForm, typed: Typed) -> Plan:
    """Return the members of the sweep around a form that is right by itself; an empty list of seeds means its seed."""
    assert base.config is not None
    found = Plan(starts=starts(base, typed.presets))
    seeds: tuple[int, ...] = ()
    try:
        seeds = read_seeds(typed.seeds) or (base.config.seed,)
    except ValueError as error:
        found.errors["sweep.seeds"] = str(error)
    parameters = _parameters(typed, found)
    found.axes = Axes(
        presets=tuple(p for p in typed.presets if p in PRESETS), seeds=seeds, parameters=tuple(parameters)
    )
    found.count = sum(prod(len(p.values) for p in _had(start, parameters)) for start in found.starts) * len(seeds)
    if found.count > MAX_MEMBERS:
        found.errors["sweep"] = (
            f"These are {found.count:,} runs and a sweep holds at most {MAX_MEMBERS}; take out objectives, seeds or "
            "values."
        )
    if found.errors:
        return found
    cells = [cell for start in found.starts for cell in _cells(start, parameters)]
    _judge(cells, found, {path: index for index, path, _ in typed.parameters})
    if not found.faults and not found.errors:
        found.members = _members(cells, found.axes, len(found.starts), base.config)
    return found


def _parameters(typed: Typed, found: Plan) -> list[Parameter]:
    """Return the typed settings that some objective has; write what is wrong with the others beside their fields."""
    kept: dict[str, Parameter] = {}
    if len(typed.parameters) > MAX_PARAMETERS:
        found.errors["sweep"] = f"A sweep varies at most {MAX_PARAMETERS} settings; take some out."
    for index, path, values in typed.parameters:
        here = f"sweep.parameters.{index}"
        having = [start for start in found.starts if path in start.settings]
        if not path:
            found.errors[f"{here}.path"] = "Choose the setting that takes these values."
        elif not having:
            found.errors[f"{here}.path"] = _unknown(path, found.starts)
        elif path in kept:
            found.errors[f"{here}.path"] = f"{path} stands here twice; write all its values in one row."
        elif not values:
            found.errors[f"{here}.values"] = "Write the values it takes, separated by commas."
        else:
            kept[path] = Parameter(path=path, values=values)
            if lacking := [start.title for start in found.starts if start not in having]:
                found.notes.append(_lacking(path, lacking))
    return list(kept.values())


def _unknown(path: str, among: list[Start]) -> str:
    if path in ("seed", "name"):
        return "Seeds have their own list above." if path == "seed" else "Names are made by themselves."
    last = path.rpartition(".")[2]
    near = sorted({known for start in among for known in start.settings if known.rpartition(".")[2] == last})
    hint = f"did you mean {' or '.join(near[:3])}?" if near else "choose one of the list."
    return f"No objective of this sweep has a number, switch or choice called “{path[:120]}”; {hint}"


def _lacking(path: str, titles: list[str]) -> str:
    shown = ", ".join(titles[:4]) + (f" and {len(titles) - 4} more" if len(titles) > 4 else "")
    verb = "has" if len(titles) == 1 else "have"
    return f"{shown} {verb} no {path} and {'runs' if len(titles) == 1 else 'run'} without it, once for each seed."


def _had(start: Start, parameters: Iterable[Parameter]) -> list[Parameter]:
    return [parameter for parameter in parameters if parameter.path in start.settings]


def _cells(start: Start, parameters: list[Parameter]) -> list[_Cell]:
    had = _had(start, parameters)
    cells = []
    for values in product(*(parameter.values for parameter in had)):
        chosen = {parameter.path: value for parameter, value in zip(had, values, strict=True)}
        typed = {start.settings[path].place: _text(start.settings[path], value) for path, value in chosen.items()}
        form = RunForm(start.form.data | typed).judged() if typed else replace(start.form, errors={**start.form.errors})
        cells.append(_Cell(start, chosen, form))
    return cells


def _text(setting: Setting, value: str) -> str:
    """Return the value as the form's input would send it."""
    if setting.spec.kind == "switch" and value.lower() in ("on", "off", "true", "false", "yes", "no"):
        return "on" if value.lower() in ("on", "true", "yes") else "off"
    return value


def _judge(cells: list[_Cell], found: Plan, rows: Mapping[str, int]) -> None:
    """Write what is wrong with members: beside the value that causes it, else as a fault that names them."""
    faults: dict[tuple[str, str], list[str]] = {}
    names = _short(found.axes)
    disk, free = 0, None
    for cell in cells:
        form = cell.form
        if form.config:
            checked = checks.quick(form.config)
            form.refuse(checked.problems)
            if checked.estimate:
                disk += checked.estimate.disk_bytes * len(found.axes.seeds)
                free = checked.estimate.free_disk_bytes
        places = {cell.start.settings[path].place: path for path in cell.values}
        for place, text in form.errors.items():
            if path := places.get(place):
                message = f"{cell.values[path]}: {text}"
                found.errors.setdefault(f"sweep.parameters.{rows[path]}.values", message)
        for _, label, text in form.problems:
            faults.setdefault((label, text), []).append(_cell_name(cell, names, len(found.starts)))
    found.faults = [Fault(label, text, members) for (label, text), members in faults.items()]
    if free is not None and disk > free:
        found.notes.append(
            f"Their checkpoints take about {size(disk)} and {size(free)} are free; keep fewer or free some space."
        )


def _short(axes: Axes) -> dict[str, str]:
    return short_names(tuple(parameter.path for parameter in axes.parameters))


def _cell_name(cell: _Cell, names: Mapping[str, str], objectives: int) -> str:
    parts = [cell.start.key] if objectives > 1 or not cell.values else []
    return " · ".join([*parts, *(f"{names[path]}={value}" for path, value in cell.values.items())])


def _members(cells: list[_Cell], axes: Axes, objectives: int, base: RunConfig) -> list[Member]:
    names, prefix = _short(axes), base.name or f"{base.task.type} sweep"  # type: ignore[attr-defined]  # a run-time union
    members = []
    for cell in cells:
        assert cell.form.config is not None
        for seed in axes.seeds:
            ending = f" · {_cell_name(cell, names, objectives)} · seed {seed}"
            name = prefix[: max(8, NAME - len(ending))] + ending
            members.append(
                Member(
                    name=name[:NAME],
                    coordinates=Coordinates(objective=cell.start.key, seed=seed, values=cell.values),
                    config=cell.form.config.model_copy(update={"seed": seed, "name": name[:NAME]}),
                )
            )
    return members
