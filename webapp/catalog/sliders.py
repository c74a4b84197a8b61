"""The controls beside an objective's picture, made from the settings its parts declare."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from trainer.objectives import PARTS
from trainer.objectives.picture import MARKS, Scene
from trainer.objectives.preview import describe_part, fields_of
from webapp.catalog.methods import Method

REACH = 5  # a slider without near bounds spans this many defaults
TINY = 0.01  # below this a positive default gets a logarithmic slider
DECADES = 100.0  # to both sides of the default on such a slider
QUIET = ("controller", "sampling")  # stages that act between steps: of these only knobs that others read show
AIMS = {"entropy_target", "entropy_low", "entropy_high", "auxiliary_temperature", "auxiliary_weight"}  # moves no token


@dataclass(frozen=True)
class Control:
    """One setting as a slider with a number, a menu or a switch. `low` and `high` are the ends of the slider alone."""

    name: str
    title: str
    help: str
    kind: str  # number, choice, switch
    value: Any
    unit: str = ""
    low: float = 0.0
    high: float = 1.0
    least: float | None = None  # what may be typed
    most: float | None = None
    whole: bool = False
    scale: str = "linear"
    choices: tuple[str, ...] = ()
    show_if: str = ""  # JSON: the settings beside it, and their values, at which it matters


@dataclass(frozen=True)
class Sliders:
    """Some controls of one part; `folded` away: rarely wanted settings, and parts the method shares with GRPO."""

    part: str
    title: str
    controls: list[Control]
    folded: bool


def sliders(method: Method) -> list[Sliders]:
    """Return the controls of every part that shapes the picture."""
    own = {part.type for part in method.own or method.config.parts}  # of the baseline itself, everything
    found = []
    for part in method.config.parts:
        fields = fields_of(PARTS[part.type], part)
        if part.stage in QUIET:
            fields = [field for field in fields if field["knob"] and field["knob"] not in AIMS]
        for folded in (False, True):
            its = [field for field in fields if (field["advanced"] or part.type not in own) is folded]
            found.append(Sliders(part.type, describe_part(part)["title"], controls_of(its), folded))
    return [group for group in found if group.controls]


def controls_of(fields: list[dict[str, Any]]) -> list[Control]:
    return [control for field in fields if (control := control_of(field))]


def scene_controls(method: Method, scene: Scene) -> list[Control]:
    """Return the controls of the made-up step that can matter to a method."""
    idle = set()
    if not any(part.course(0.0) for part in method.config.parts):
        idle.add("progress")
    if not method.reads.intersection(MARKS):
        idle.add("marked")
    fields = [field for field in fields_of(Scene, scene) if field["name"] not in idle]
    return controls_of(fields)


def control_of(field: dict[str, Any]) -> Control | None:
    """Return the control of a setting; None for lists and texts, which no slider moves."""
    value, schema = field["value"], field["schema"]
    base = {
        "name": field["name"],
        "title": field["title"],
        "help": field["help"],
        "unit": field["unit"],
        "value": value,
        "show_if": json.dumps(field["show_if"]) if field["show_if"] else "",
    }
    if isinstance(value, bool):
        return Control(**base, kind="switch")
    if "enum" in schema:
        return Control(**base, kind="choice", choices=tuple(schema["enum"]))
    if not isinstance(value, int | float):
        return None
    least, most = (
        schema.get("minimum", schema.get("exclusiveMinimum")),
        schema.get("maximum", schema.get("exclusiveMaximum")),
    )
    low, high, scale = span(float(value), least, most, positive="exclusiveMinimum" in schema and least == 0)
    whole = isinstance(value, int) and schema.get("type") == "integer"
    return Control(**base, kind="number", low=low, high=high, least=least, most=most, whole=whole, scale=scale)


def span(value: float, least: float | None, most: float | None, *, positive: bool) -> tuple[float, float, str]:
    """Return the ends and the scale of a slider in which the value's neighbourhood can be explored."""
    bottom, top = -float("inf") if least is None else least, float("inf") if most is None else most
    if 0 < value < TINY and bottom >= 0:
        return value / DECADES, min(top, value * DECADES), "log"
    reach = REACH * abs(value) or 1.0
    if top - bottom <= 2 * reach + abs(value):
        low, high = bottom, top
    else:
        low, high = max(bottom, 0.0 if bottom >= 0 else -reach), min(top, reach)
    return (high / 1000 if positive and low <= 0 else low), high, "linear"
