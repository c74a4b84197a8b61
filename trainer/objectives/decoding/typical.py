"""Locally typical sampling as part of a method."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import Decoding
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from trainer.rollout.base import SamplerSpec


class TypicalSampling(Decoding):
    """Locally typical sampling.

    Draws only tokens whose surprisal is close to the entropy: neither the too expected nor the too surprising. Stands
    in for the run's own setting, sampling.typical_p, and comes before top-p, top-k and min-p.
    """

    title: ClassVar[str] = "Typical sampling"
    paper: ClassVar[str] = "2202.00666"
    formula: ClassVar[str] = (
        r"S_t = \text{the shortest list of } v \text{ by } |-\ln \pi_t(v) - H_t| \text{ with } \pi_t(S_t) \ge \tau"
    )
    leaves_out: ClassVar[bool] = True
    type: Literal["typical_sampling"] = "typical_sampling"
    mass: float = setting(
        0.9, help="tau: probability that the typical set holds at least.", gt=0, le=1, knob="typical_mass"
    )

    def sampler(self, given: SamplerSpec, sample: int, samples: int, step: Step) -> SamplerSpec:
        return replace(given, typical_p=step.knobs["typical_mass"])


PARTS = (TypicalSampling,)
PRESETS = (
    Preset(
        name="typical-sampling",
        title="Typical sampling",
        summary="GRPO on completions without their least and, where entropy is high, their most expected tokens.",
        when="Long tails of unlikely tokens spoil completions, and top-p would cut forks off as well.",
        formula=TypicalSampling.formula,
        reference=paper("Locally Typical Sampling", "2202.00666", 2022),
        confidence="code",
        assumed="That it helps while training: the paper is about generation alone. Draws from part of the policy are "
        "learned from as if they came from all of it.",
        parts=[{"type": "typical_sampling"}, GROUP, CLIP, TOKENS],
    ),
)
