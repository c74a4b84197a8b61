"""Presets: named lists of parts with where they come from, and the families they are sorted into."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from pydantic import Field, model_validator

from trainer.part import Settings


class Reference(Settings):
    """Where a preset comes from."""

    title: str
    arxiv: str = ""
    year: int = 0
    url: str = ""


def paper(title: str, arxiv: str, year: int) -> Reference:
    """Return the reference of an arXiv paper."""
    return Reference(title=title, arxiv=arxiv, year=year, url=f"https://arxiv.org/abs/{arxiv}")


class Preset(Settings):
    """A list of parts named after its paper.

    `formula` is LaTeX. `assumed` says what had to be filled in where only an abstract or summary was at hand, and makes
    the preset experimental; `variants` says where released code and paper differ.
    """

    name: str
    title: str
    summary: str
    when: str = ""
    formula: str = ""
    reference: Reference | None = None
    confidence: Literal["code", "paper", "secondary", "reconstructed", "own"] = "paper"
    assumed: str = ""
    variants: str = ""
    family: str = ""  # set by the registry
    parts: list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _labelled(self) -> Preset:
        if self.confidence == "reconstructed" and not self.assumed:
            raise ValueError(f"preset {self.name} is reconstructed; say in assumed what was filled in")
        return self

    @property
    def experimental(self) -> bool:
        return bool(self.assumed)


@dataclass(frozen=True)
class Family:
    """Methods of one kind; each module declares PARTS and PRESETS."""

    title: str
    modules: tuple[ModuleType, ...]
