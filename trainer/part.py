"""A part: settings and behaviour of one named choice (a task, a reward, a stage of an objective) in one class."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Immutable, closed settings: an unknown key is an error that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class Part(Settings):
    """One choice among several, told apart by `type`; the fields are its settings, the methods its behaviour.

    The class docstring is shown to users: first line the title, the rest the explanation.
    """

    type: str
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""


def setting(
    default: Any = ...,
    *,
    help: str,
    title: str | None = None,
    unit: str | None = None,
    advanced: bool = False,
    knob: str | None = None,
    show_if: dict[str, Any] | None = None,
    **constraints: Any,
) -> Any:
    """Declare one setting: default, bounds and what the form, the docs and the command line say of it.

    `help` is one sentence; `unit` is written after the number (nats, tokens, seconds, bytes, steps); `advanced`
    folds the field away; `knob` names the steerable knob that starts at this value; `show_if` maps a sibling field
    to the value (or list of values) at which this one matters. Other keywords are pydantic's (ge, gt, le, lt, ...).
    """
    extra: dict[str, Any] = {"unit": unit, "advanced": advanced, "knob": knob, "show_if": show_if}
    extra = {name: value for name, value in extra.items() if value}
    if "default_factory" in constraints:
        return Field(description=help, title=title, json_schema_extra=extra, **constraints)
    return Field(default, description=help, title=title, json_schema_extra=extra, **constraints)
