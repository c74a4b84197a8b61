"""Objectives: tables of parts and presets, and the config that names them. Imports no torch until a part computes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from trainer.part import Settings, setting


class ObjectiveConfig(Settings):
    """A preset, and the parts that differ from it: a part given here replaces the fields of the preset's part of the same type."""

    preset: str = setting("grpo", help="Named list of parts to start from.")
    parts: list[Any] = setting(help="Resolved parts in pipeline order.", default_factory=list)
