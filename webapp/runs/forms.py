"""The new-run form: generated from RunConfig, judged by RunConfig, and what the page does to it between the two."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trainer.config import RunConfig, errors_of
from trainer.objectives import PARTS, PRESETS, ObjectiveConfig
from trainer.objectives.config import EXCLUSIVE
from webapp.runs.configform import Bound, Data, Node, Rows, bind, flatten, parse, place, read, rows, shape_of

if TYPE_CHECKING:
    from webapp.runs.checks import Checked

SHAPE = shape_of(RunConfig)
OBJECTIVE, PARTS_PATH = "objective", "objective.parts"
OTHER_MODEL, OTHER_MODEL_PATH = "other:", "model.source_other"


@dataclass
class RunForm:
    """Form data and what is wrong with it, by form path; `config` is there when nothing is wrong."""

    data: Data
    config: RunConfig | None = None
    errors: dict[str, str] = field(default_factory=dict)
    op: str = ""
    checked: Checked | None = None

    @classmethod
    def of(cls, config: RunConfig) -> RunForm:
        """Return the form that shows `config`."""
        return cls(flatten(SHAPE, config.model_dump()), config)

    @classmethod
    def of_values(cls, values: dict[str, Any]) -> RunForm:
        """Return the form of an older run's config, in which some settings may no longer be allowed."""
        try:
            return cls.of(RunConfig.model_validate(values))
        except ValidationError as error:
            return cls(flatten(SHAPE, values), errors=place(SHAPE, errors_of(error)))

    @classmethod
    def posted(cls, pairs: Iterable[tuple[str, str]], *, op: str = "") -> RunForm:
        """Return the form as the browser sent it, after one of the page's own operations, judged."""
        form = cls(read(pairs))
        return form.swapped(op) if op else form.judged()

    def judged(self) -> RunForm:
        """Return this form with `config` or `errors` by what the data now says."""
        data = tidy(self.data)
        try:
            return RunForm(data, RunConfig.model_validate(parse(SHAPE, data)), op=self.op)
        except ValidationError as error:
            return RunForm(data, errors=place(SHAPE, errors_of(error)), op=self.op)

    @property
    def ready(self) -> RunConfig | None:
        """The config, if nothing is known that would stop its run."""
        return None if self.errors else self.config

    def refuse(self, problems: dict[str, str]) -> None:
        """Add what a check found, by dotted config path."""
        self.errors = place(SHAPE, problems) | self.errors

    def swapped(self, op: str) -> RunForm:
        """Return the form after one of the page's own operations, judged.

        `add:PATH` and `add:PATH:TYPE` append a row, `remove:PATH.N` takes one away, `preset:NAME` starts the objective
        anew, `swap:PATH:OLD` drops what was left at the old type's defaults.
        """
        verb, _, rest = op.partition(":")
        data = tidy(self.data)
        if verb == "add":
            path, _, tag = rest.partition(":")
            _add_row(data, path, tag)
        elif verb == "remove":
            data = {name: value for name, value in data.items() if not name.startswith(rest + ".")}
        elif verb == "swap":
            path, _, old = rest.partition(":")
            data = _drop_defaults(data, path, old)
        elif verb == "preset":
            data = _start_preset(data, rest)
        return RunForm(data, op=op).judged()

    @cached_property
    def bound(self) -> Bound:
        return bind(SHAPE, self.data, self.errors, preset_defaults(self.data))

    def section(self, path: str) -> Bound:
        """Return the bound node at a path that exists."""
        found = self.bound.find(path)
        if found is None:
            raise KeyError(path)
        return found

    @property
    def problems(self) -> list[tuple[str, str, str]]:
        """Return (id of the field, its name, the sentence) of every error, in the order of the page."""
        found = [(bound.id, label, bound.error) for label, bound in _troubled(self.bound, "")]
        shown = {bound.path for _, bound in _troubled(self.bound, "")}
        return found + [
            ("", "", message)
            for path, message in self.errors.items()
            if path not in shown and f"{path}" + ".type" not in shown
        ]

    @property
    def added_parts(self) -> set[str]:
        """Return the paths of objective parts that the preset does not bring, so that they can be removed."""
        preset = PRESETS.get(self.data.get("objective.preset", ""))
        brought = {part["type"] for part in preset.parts} if preset else set()
        stages = {PARTS[name].stage for name in brought}
        found = set()
        for index in rows(self.data, PARTS_PATH):
            tag = self.data.get(f"{PARTS_PATH}.{index}.type", "")
            if (
                tag in PARTS
                and tag not in brought
                and not (PARTS[tag].stage in EXCLUSIVE and PARTS[tag].stage in stages)
            ):
                found.add(f"{PARTS_PATH}.{index}")
        return found


def tidy(data: Data) -> Data:
    """Return the data with rows numbered from 0 and the freely typed model in its place."""
    found = dict(data)
    if found.get("model.source") == OTHER_MODEL:
        found["model.source"] = found.get(OTHER_MODEL_PATH, "").strip()
    for path in row_paths(SHAPE, ""):
        wanted = {old: new for new, old in enumerate(rows(found, path))}
        found = {_renumber(name, path, wanted): value for name, value in found.items()}
    return found


def row_paths(node: Node, path: str) -> list[str]:
    """Return where the config has lists of parts; none is inside another."""
    children = getattr(node, "children", ())
    nested = [found for child in children for found in row_paths(child, f"{path}.{child.name}" if path else child.name)]
    return [path, *nested] if isinstance(node, Rows) else nested


def _renumber(name: str, path: str, wanted: dict[int, int]) -> str:
    head, _, rest = name[len(path) + 1 :].partition(".")
    if not name.startswith(path + ".") or not head.isdecimal() or int(head) not in wanted:
        return name
    return f"{path}.{wanted[int(head)]}.{rest}"


def _add_row(data: Data, path: str, tag: str) -> None:
    index = max(rows(data, path), default=-1) + 1
    node = bind(SHAPE, {}, {}, {}).find(path)
    if node is None or not isinstance(node.spec, Rows) or index >= node.spec.high:
        return
    options = getattr(node.spec.item, "options", {})
    data[f"{path}.{index}.type"] = tag if tag in options else next(iter(options), "")


def _drop_defaults(data: Data, path: str, tag: str) -> Data:
    """Return the data without what stands at the defaults of the type that was left; the new type has its own."""
    found = bind(SHAPE, data | {f"{path}.type": tag}, {}, {}).find(path)
    left = {child.path for child in found.children if not child.changed} if found else set()
    return {name: value for name, value in data.items() if name not in left}


def _start_preset(data: Data, name: str) -> Data:
    kept = {key: value for key, value in data.items() if not key.startswith(OBJECTIVE + ".")}
    if name not in PRESETS:
        return kept | {"objective.preset": name}
    return kept | flatten(SHAPE.child(OBJECTIVE), ObjectiveConfig(preset=name).model_dump(), OBJECTIVE)  # type: ignore[arg-type]


def preset_defaults(data: Data) -> Data:
    """Return what the chosen preset sets its parts to, at the rows where they stand: the defaults to compare with."""
    preset = PRESETS.get(data.get("objective.preset", ""))
    if preset is None:
        return {}
    node = SHAPE.child(OBJECTIVE)
    own = flatten(node, ObjectiveConfig(preset=preset.name).model_dump(), OBJECTIVE)  # type: ignore[arg-type]
    place_of = {own[f"{PARTS_PATH}.{index}.type"]: index for index in rows(own, PARTS_PATH)}
    found: Data = {"objective.preset": preset.name}
    for index in rows(data, PARTS_PATH):
        source = place_of.get(data.get(f"{PARTS_PATH}.{index}.type", ""))
        prefix = f"{PARTS_PATH}.{source}."
        found |= {
            f"{PARTS_PATH}.{index}." + name.removeprefix(prefix): value
            for name, value in own.items()
            if name.startswith(prefix)
        }
    return found


def _troubled(bound: Bound, label: str) -> list[tuple[str, Bound]]:
    own_label = bound.option.label if bound.option and bound.path[-1:].isdecimal() else bound.spec.label
    name = f"{label} › {own_label}" if label else own_label
    own = [(name, bound)] if bound.error else []
    # The root has no name worth showing.
    inner = "" if not bound.path else name
    return own + [item for child in bound.children for item in _troubled(child, inner)]
