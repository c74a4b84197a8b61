"""Fork temperature: one temperature for high-entropy tokens, another for the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import Decoding
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting
from trainer.rollout.modifiers import ForkTemperature as Modifier

if TYPE_CHECKING:
    from trainer.rollout.base import SamplerSpec


class ForkTemperature(Decoding):
    """Fork temperature (80/20).

    Where the policy's entropy exceeds a threshold the token is drawn at one temperature, elsewhere at another; both
    multiply the sampling temperature.
    """

    title: ClassVar[str] = "Fork temperature"
    paper: ClassVar[str] = "2506.01939"
    formula: ClassVar[str] = (
        r"T_t = T \cdot \begin{cases} T_{\text{high}} & H_t > \theta \\ T_{\text{low}} & \text{else}\end{cases}"
    )
    type: Literal["fork_temperature"] = "fork_temperature"
    threshold: float = setting(
        0.672,
        help="Entropy above which a token is a fork: the 80 % quantile of Qwen3-8B; set it to your model's entropy/p90 "
        "or a little less.",
        unit="nats",
        ge=0,
        le=20,
        knob="fork_threshold",
    )
    high: float = setting(1.2, help="Multiplies the temperature of forks.", gt=0, le=10, knob="fork_high")
    low: float = setting(1.0, help="Multiplies the temperature of all other tokens.", gt=0, le=10, knob="fork_low")

    def sampler(self, given: SamplerSpec, sample: int, samples: int, step: Step) -> SamplerSpec:
        modifier = Modifier(*(step.knobs[name] for name in ("fork_threshold", "fork_high", "fork_low")))
        return replace(given, modifiers=(*given.modifiers, modifier))


PARTS = (ForkTemperature,)
PRESETS = (
    Preset(
        name="fork-temperature",
        title="Fork temperature",
        summary="GRPO on completions whose forks, the high-entropy tokens, were drawn hotter than the rest.",
        when="You want more different lines of reasoning without noise in the words between them.",
        formula=ForkTemperature.formula,
        reference=paper(
            "Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM "
            "Reasoning",
            "2506.01939",
            2025,
        ),
        confidence="paper",
        assumed="That it helps while training: the paper changes the temperature of forks in decoding experiments with "
        "trained models alone, where raising it for forks did more than raising it elsewhere. The two factors.",
        parts=[{"type": "fork_temperature"}, GROUP, CLIP, TOKENS],
    ),
)
