"""CE-GPPO: tokens beyond the clip keep a bounded gradient, weighed separately on either side."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import RatioSurrogate, clip_of, dual, log_ratio, report_clip, unit
from trainer.objectives.stock import GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class CEGPPO(RatioSurrogate):
    """Gradient-preserving clip (CE-GPPO, GPPO).

    A token whose ratio has left the clip in the direction of its advantage keeps the gradient it had at the clip's
    end, times a coefficient: `beta_low` below (punished tokens; more lowers entropy), `beta_high` above (rewarded
    tokens, mostly rare ones; more raises entropy). Both 0 is PPO's gradient, both 1 is GPPO.
    """

    title: ClassVar[str] = "Gradient-preserving clip"
    paper: ClassVar[str] = "2509.20712"
    formula: ClassVar[str] = (
        r"x_t = -A_t \begin{cases}"
        r"\beta_1 (1-\epsilon_-)\, r_t / \operatorname{sg}(r_t) & A_t < 0,\ r_t < 1-\epsilon_- \\"
        r"\beta_2 (1+\epsilon_+)\, r_t / \operatorname{sg}(r_t) & A_t > 0,\ r_t > 1+\epsilon_+ \\"
        r"r_t & \text{else}\end{cases}"
    )
    blind: ClassVar[bool] = True
    type: Literal["ce_gppo"] = "ce_gppo"
    clip_low: float = setting(0.2, help="The ratio may fall this far below 1.", ge=0, le=1, knob="clip_low")
    clip_high: float = setting(0.2, help="The ratio may rise this far above 1.", ge=0, le=100, knob="clip_high")
    beta_low: float = setting(
        0.5,
        help="Gradient kept by punished tokens below the clip; more of it lowers entropy.",
        ge=0,
        le=10,
        knob="beta_low",
    )
    beta_high: float = setting(
        1.0,
        help="Gradient kept by rewarded tokens above the clip; more of it raises entropy.",
        ge=0,
        le=10,
        knob="beta_high",
    )
    dual_clip: float = setting(
        10.0,
        help="Bound on the ratio of tokens with negative advantage; 0 turns it off.",
        ge=0,
        le=1000,
        advanced=True,
    )

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage, ratio, one = batch.need("advantage"), log_ratio(batch).exp(), unit(batch)
        below, above = clip_of(batch, step)
        low, high = 1 - below, 1 + above
        kept_low = step.knobs.get("beta_low", self.beta_low) * low * one
        kept_high = step.knobs.get("beta_high", self.beta_high) * high * one
        kept = torch.where((advantage < 0) & (ratio < low), kept_low, ratio)
        kept = torch.where((advantage > 0) & (ratio > high), kept_high, kept)
        report_clip(batch, step, ratio, low, high)
        return self.corrected(dual(-advantage * kept, advantage, self.dual_clip), batch, step)


PARTS = (CEGPPO,)
PRESETS = (
    Preset(
        name="ce-gppo",
        title="CE-GPPO",
        summary="PPO's clip stops the gradient of exactly the rare tokens that move entropy. Here they keep a bounded "
        "part of it: rewarded ones above the clip in full, which raises entropy, punished ones below it by half, "
        "which lowers it. The two coefficients can be steered.",
        when="Several minibatches per step; on-policy nothing is clipped and it equals GRPO. The authors take "
        "beta_low 0.5 for a model of 1.5 billion parameters and 0.75 for 7 billion.",
        formula=CEGPPO.formula,
        reference=paper(
            "CE-GPPO: Coordinating Entropy via Gradient-Preserving Clipping Policy Optimization in Reinforcement "
            "Learning",
            "2509.20712",
            2025,
        ),
        confidence="code",
        parts=[GROUP, {"type": "ce_gppo"}, TOKENS],
    ),
    Preset(
        name="gppo",
        title="GPPO",
        summary="The gradient-preserving clip with both coefficients 1: every clipped token keeps the gradient it had "
        "at the clip's end. Exploration above the clip and correction below it both go on; nothing holds entropy.",
        when="The plain form to compare CE-GPPO's coefficients with.",
        formula=CEGPPO.formula,
        reference=paper(
            "Klear-Reasoner: Advancing Reasoning Capability via Gradient-Preserving Clipping Policy Optimization",
            "2508.07629",
            2025,
        ),
        confidence="code",
        parts=[GROUP, {"type": "ce_gppo", "beta_low": 1.0, "beta_high": 1.0}, TOKENS],
    ),
)
