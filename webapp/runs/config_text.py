"""A run's config for people: TOML, what differs from the defaults, and the command that repeats it."""

from __future__ import annotations

from typing import Any

import tomli_w
from pydantic import ValidationError

from trainer.config import RunConfig, to_toml
from webapp.runs.models import Run


def toml(run: Run) -> str:
    """Return the resolved config as TOML; one that today's fields refuse is shown as it was stored."""
    try:
        return to_toml(RunConfig.model_validate(run.config))
    except ValidationError:
        return tomli_w.dumps(_without_none(run.config))


def command(run: Run) -> str:
    """Return the shell command that repeats the run without the web app."""
    return f"python -m trainer run {run.pk}.toml"


def differences(run: Run) -> list[tuple[str, str, str]]:
    """Return (field, default, value here) for every setting that differs from the defaults."""
    default, here = flatten(RunConfig().model_dump(mode="json")), flatten(run.config)
    names = sorted({*default, *here} - {"name"})
    return [(name, _text(default, name), _text(here, name)) for name in names if default.get(name) != here.get(name)]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted path: leaf}; entries of lists are numbered."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else None
    if items is None or not config:
        return {prefix: config}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _text(values: dict[str, Any], name: str) -> str:
    return "–" if values.get(name) is None else str(values[name])


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value if item is not None]
    return value
