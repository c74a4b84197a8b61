"""describe: what the web form shows of an objective before anything runs. Imports no torch."""

from __future__ import annotations

from typing import Any

from trainer.objectives.base import ObjectivePart
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.registry import PARTS, PRESETS

SAMPLES = 101  # points of a curve over the run


def describe(objective: str | ObjectiveConfig) -> dict[str, Any]:
    """Return title, summary, when, reference, confidence, parts with their fields, knobs and the planned entropy curve.

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
        "reference": preset.reference.model_dump() if preset.reference else None,
        "confidence": preset.confidence,
        "parts": [describe_part(part) for part in config.parts],
        "curve": curve(config),
    }


def describe_part(part: ObjectivePart) -> dict[str, Any]:
    """Return one part with its fields as the form needs them; `value` is the setting in this config."""
    title, _, text = (type(part).__doc__ or "").strip().partition("\n")
    return {
        "type": part.type,
        "stage": part.stage,
        "title": part.title or title,
        "text": " ".join((text or title).split()),
        "paper": part.paper,
        "needs": sorted(part.reads()),
        "fields": describe_fields(type(part), part),
    }


def describe_fields(kind: type[ObjectivePart], part: ObjectivePart | None = None) -> list[dict[str, Any]]:
    """Return the settings of a part type: name, help, unit, knob, schema of the value, default and present value."""
    schema = kind.model_json_schema()
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
                "help": info.description or "",
                "unit": extra.get("unit", ""),
                "knob": extra.get("knob"),
                "advanced": bool(extra.get("advanced")),
                "show_if": extra.get("show_if"),
                "schema": {**value, "$defs": shared} if shared else value,
                "default": default,
                "value": getattr(part, name) if part is not None else default,
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
            "title": kind.title,
            "text": " ".join((kind.__doc__ or "").split()),
            "paper": kind.paper,
            "fields": describe_fields(kind),
        }
        for name, kind in PARTS.items()
    }
    return {"presets": [describe(name) for name in PRESETS], "parts": parts}
