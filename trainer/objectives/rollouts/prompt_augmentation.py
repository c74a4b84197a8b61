"""Prompt augmentation: each time a prompt is drawn, it is worded otherwise."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator

from trainer.objectives.base import Domain
from trainer.objectives.preset import Preset, paper
from trainer.objectives.rollouts.wordings import WORDINGS
from trainer.objectives.stages import Prompting
from trainer.objectives.stock import CLIP_HIGHER, GROUP, TOKENS
from trainer.part import setting
from trainer.template import Template


class PromptAugmentation(Prompting):
    """Prompt augmentation.

    Every prompt drawn gets one of several templates, each as likely; its whole group shares it. Templates differ in
    what is said before, where the instruction stands, how the answer begins and what form it is to have. A prompt that
    gets too long in a template is asked plainly. Held-out prompts are always asked plainly. The reward template_form
    pays for the form that a template asks for.
    """

    title: ClassVar[str] = "Prompt augmentation"
    paper: ClassVar[str] = "2602.03190"
    formula: ClassVar[str] = r"x \to \tau_k(x),\quad k \sim \operatorname{Uniform}\{1, \dots, 13\}\ \text{per group}"
    domain: ClassVar[Domain] = "group"
    type: Literal["prompt_augmentation"] = "prompt_augmentation"
    names: list[str] = setting(
        help=f"Templates in use, among {', '.join(WORDINGS)}; empty means all.",
        default_factory=list,
        max_length=len(WORDINGS),
    )

    @field_validator("names")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in WORDINGS:
                raise ValueError(f"there is no template {name!r}; choose among {', '.join(WORDINGS)}")
        return list(dict.fromkeys(names))

    def templates(self) -> dict[str, Template]:
        return {name: WORDINGS[name] for name in self.names or WORDINGS}


PARTS = (PromptAugmentation,)
PRESETS = (
    Preset(
        name="prompt-augmentation",
        title="Prompt augmentation",
        summary="GRPO with a higher upper clip, whose prompts are worded in one of 13 ways each time they are drawn: "
        "answers stay varied across wordings although entropy within one may fall, so many epochs do not collapse.",
        when="Few prompts that are gone through many times, with a model that follows instructions; for form checks "
        "add the reward template_form.",
        formula=PromptAugmentation.formula,
        reference=paper("Prompt Augmentation Scales up GRPO Training on Mathematical Reasoning", "2602.03190", 2026),
        confidence="code",
        variants="The templates are Isentrope's own, of the same kinds as the authors'; theirs are applied by changing "
        "the tokenizer that all of a process shares.",
        parts=[{"type": "prompt_augmentation"}, GROUP, CLIP_HIGHER, TOKENS],
    ),
)
