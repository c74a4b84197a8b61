"""describe: what pages and docs say of an objective, from its declarations alone. Imports no torch."""

from __future__ import annotations

from functools import cache
from typing import Any

from trainer.objectives.base import ObjectivePart
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.registry import PARTS, PRESETS
from trainer.part import Settings
from trainer.statistics import STATISTICS, Statistic, StatisticInfo, unavailable

SAMPLES = 101  # points of a curve over the run


def describe(objective: str | ObjectiveConfig) -> dict[str, Any]:
    """Return everything declared of a preset, its parts with their fields, and the planned entropy curve.

    The curve holds `x` in [0, 1] (share of the run), `low`, `high` and `unit` (nats, or "x initial" for multiples of
    the initial entropy); it is None where nothing is planned. Raises ValueError for an unknown preset.
    """
    config = ObjectiveConfig(preset=objective) if isinstance(objective, str) else objective
    preset = PRESETS[config.preset]
    return {
        "name": preset.name,
        "title": preset.title,
        "summary": preset.summary,
        "when": preset.when,
        "formula": preset.formula,
        "family": preset.family,
        "assumed": preset.assumed,
        "experimental": preset.experimental,
        "variants": preset.variants,
        "statistics": [info.name for info in statistics(config)],
        "missing": {info.name: info.missing for info in missing(config)},
        "reference": preset.reference.model_dump() if preset.reference else None,
        "confidence": preset.confidence,
        "parts": [describe_part(part) for part in config.parts],
        "curve": curve(config),
    }


def reads(config: ObjectiveConfig) -> frozenset[Statistic]:
    """Return the statistics an objective reads."""
    return frozenset().union(*(part.reads() for part in config.parts))


def statistics(config: ObjectiveConfig) -> list[StatisticInfo]:
    """Return the statistics an objective reads, in the order of their table; the log-prob is always among them."""
    names = reads(config) | {"logprob"}
    return [info for name, info in STATISTICS.items() if name in names]


def missing(config: ObjectiveConfig) -> list[StatisticInfo]:
    """Return the statistics an objective reads and a run cannot have: without them it can only be evaluated."""
    return unavailable(reads(config))


def part_words(kind: type[ObjectivePart]) -> tuple[str, str]:
    """Return title and explanation of a part type: its docstring, without a first line that only repeats the title."""
    first, _, rest = (kind.__doc__ or "").strip().partition("\n\n")
    first, rest = " ".join(first.split()), " ".join(rest.split())
    title = kind.title or first.rstrip(".")
    return title, rest if first.rstrip(".") == title and rest else " ".join(filter(None, (first, rest)))


def changes(config: ObjectiveConfig) -> list[ObjectivePart]:
    """Return the parts in which an objective differs from plain GRPO: the method's own."""
    plain = {part.type: part for part in ObjectiveConfig().parts}
    return [part for part in config.parts if part != plain.get(part.type)]


LOWER = (("minimum", "≥"), ("exclusiveMinimum", ">"))
UPPER = (("maximum", "≤"), ("exclusiveMaximum", "<"))
KINDS = {"boolean": "on, off", "null": "empty", "array": "list", "string": "text"}


def allowed(schema: dict[str, Any], name: str) -> str:
    """Return in words what a setting may be by its JSON schema: its range, its choices or its kind."""
    return _words(schema["properties"][name], schema.get("$defs", {}))


def _words(value: dict[str, Any], shared: dict[str, Any]) -> str:
    if "$ref" in value:
        return _words(shared[value["$ref"].rpartition("/")[2]], shared)
    if "anyOf" in value:
        return " or ".join(_words(item, shared) for item in value["anyOf"])
    if "enum" in value:
        return ", ".join(map(str, value["enum"]))
    kind = str(value.get("type", "any"))
    low = next((f"{sign} {value[key]:,.10g}" for key, sign in LOWER if key in value), "")
    high = next((f"{sign} {value[key]:,.10g}" for key, sign in UPPER if key in value), "")
    if low.startswith("≥") and high.startswith("≤"):
        return f"{low[2:]} to {high[2:]}"
    return ", ".join(filter(None, (low, high))) or KINDS.get(kind, kind)


def describe_part(part: ObjectivePart) -> dict[str, Any]:
    """Return one part with its fields as the form needs them; `value` is the setting in this config."""
    title, text = part_words(type(part))
    return {
        "type": part.type,
        "stage": part.stage,
        "title": title,
        "text": text,
        "paper": part.paper,
        "formula": part.formula,
        "domain": part.domain,
        "needs": sorted(part.reads()),
        "fields": fields_of(type(part), part),
    }


@cache
def _schema(kind: type[Settings]) -> dict[str, Any]:
    """Return the JSON schema of a kind of settings; making one takes a millisecond."""
    return kind.model_json_schema()


def fields_of(kind: type[Settings], given: Settings | None = None) -> list[dict[str, Any]]:
    """Return the settings of a kind: name, help, unit, knob, schema of the value, default and present value."""
    schema = _schema(kind)
    shared = schema.get("$defs", {})
    fields = []
    for name, info in kind.model_fields.items():
        if name == "type":
            continue
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        value = schema["properties"][name]
        default = info.get_default(call_default_factory=True)
        fields.append(
            {
                "name": name,
                "title": info.title or name.replace("_", " "),
                "help": info.description or "",
                "unit": extra.get("unit", ""),
                "knob": extra.get("knob"),
                "allowed": allowed(schema, name),
                "advanced": bool(extra.get("advanced")),
                "show_if": extra.get("show_if"),
                "schema": {**value, "$defs": shared} if shared else value,
                "default": default,
                "value": getattr(given, name) if given is not None else default,
            }
        )
    return fields


def curve(config: ObjectiveConfig) -> dict[str, Any] | None:
    """Return the planned entropy band of a config, sampled over the run, or None."""
    xs = [index / (SAMPLES - 1) for index in range(SAMPLES)]
    for part in config.parts:
        bands = [part.course(x) for x in xs]
        if all(band is not None for band in bands):
            low, high = zip(*bands, strict=True)  # type: ignore[arg-type]
            return {"x": xs, "low": list(low), "high": list(high), "unit": part.course_unit(), "part": part.type}
    return None


def catalogue() -> dict[str, Any]:
    """Return every preset and every part type: what a page that lists or composes objectives shows."""
    parts = {
        name: {
            "type": name,
            "stage": kind.stage,
            "title": part_words(kind)[0],
            "text": part_words(kind)[1],
            "paper": kind.paper,
            "formula": kind.formula,
            "domain": kind.domain,
            "fields": fields_of(kind),
        }
        for name, kind in PARTS.items()
    }
    return {"presets": [describe(name) for name in PRESETS], "parts": parts}
