"""CISPO: the importance weight is clipped, the gradient never is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import RatioSurrogate, clip_of, log_ratio, report_clip
from trainer.objectives.stock import GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class CISPO(RatioSurrogate):
    """Clipped importance weight (CISPO).

    Loss -A w log-prob with the constant weight w = clip(r, 1 - low, 1 + high): every token keeps a gradient, also a
    rare one whose ratio has moved far. The loss value contains the log-prob; compare gradients, not losses.
    """

    title: ClassVar[str] = "Clipped importance weight"
    paper: ClassVar[str] = "2506.13585"
    formula: ClassVar[str] = (
        r"x_t = -\operatorname{sg}\bigl(\operatorname{clip}(r_t, 1-\epsilon_-, 1+\epsilon_+)\bigr)\,A_t \log\pi(o_t)"
    )
    blind: ClassVar[bool] = True
    type: Literal["cispo"] = "cispo"
    sides: Literal["both", "upper"] = setting(
        "both",
        help="Bound the weight from both sides, or from above only; an absolute cap c is clip_high = c - 1 with upper.",
    )
    clip_low: float = setting(
        0.2, help="The weight is at least 1 less this.", ge=0, le=1, knob="clip_low", show_if={"sides": "both"}
    )
    clip_high: float = setting(0.28, help="The weight is at most 1 more than this.", ge=0, le=100, knob="clip_high")

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        ratio = log_ratio(batch).detach().exp()
        below, above = clip_of(batch, step)
        low = 1 - below if self.sides == "both" else torch.zeros_like(ratio)
        report_clip(batch, step, ratio, low, 1 + above)
        values = -ratio.clamp(low, 1 + above) * batch.need("advantage") * batch.logprob
        return self.corrected(values, batch, step)


PARTS = (CISPO,)
PRESETS = (
    Preset(
        name="cispo",
        title="CISPO",
        summary="The ratio is clipped as a weight instead of stopping the gradient, so rare tokens that decide where "
        "reasoning goes keep learning after the first minibatch. Entropy falls later than under PPO's clip, which "
        "drops exactly these tokens; nothing holds it in the long run.",
        when="Several minibatches per step, long answers with few forking tokens.",
        formula=CISPO.formula,
        reference=paper(
            "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention", "2506.13585", 2025
        ),
        confidence="code",
        variants="verl bounds the weight from both sides (this preset). MiniMax-M1 bounds it, in effect, from above "
        "only: sides = upper. TRL caps it at an absolute value of, say, 5: sides = upper, clip_high = 4.",
        parts=[GROUP, {"type": "cispo"}, TOKENS],
    ),
)
