"""DAPO's soft overlong punishment."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import RewardShaper
from trainer.objectives.stock import CLIP_HIGHER, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class SoftOverlong(RewardShaper):
    """Soft overlong penalty (DAPO).

    Over the last share of the completion budget the reward falls linearly, by the full penalty at the limit.
    """

    title: ClassVar[str] = "Soft overlong penalty"
    paper: ClassVar[str] = "2503.14476"
    formula: ClassVar[str] = (
        r"R_i \leftarrow R_i - c\,\operatorname{clip}\left(\frac{|o_i| - (1-b) L_{\max}}{b\,L_{\max}}, 0, 1\right)"
    )
    type: Literal["soft_overlong"] = "soft_overlong"
    limit: int = setting(
        0,
        help="Completion length at which the whole penalty is due; 0 takes the run's max_completion_tokens.",
        unit="tokens",
        ge=0,
        le=10_000_000,
    )
    buffer: float = setting(0.2, help="Share of the limit over which the penalty grows.", gt=0, le=1)
    penalty: float = setting(1.0, help="Taken from the reward at the limit.", ge=0, le=100)

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        limit = self.limit or step.max_completion_tokens
        if not limit:
            return batch.reward
        over = (batch.length.to(batch.reward.dtype) - limit * (1 - self.buffer)) / (limit * self.buffer)
        return batch.reward - self.penalty * over.clamp(0, 1)


PARTS = (SoftOverlong,)
PRESETS = (
    Preset(
        name="dapo",
        title="DAPO",
        summary="GRPO with a higher upper clip that lets rare tokens grow, a penalty that sets in softly before "
        "the length limit, and prompts without a difference in reward left out (dapo-dynamic samples others for them).",
        when="Long answers and several updates on each rollout batch.",
        formula=r"L = \frac{1}{\sum_i |o_i|} \sum_{i,t} \max\bigl(-A_i r_t,\ "
        r"-A_i \operatorname{clip}(r_t, 1-\epsilon_-, 1+\epsilon_+)\bigr),\quad \epsilon_+ > \epsilon_-",
        reference=paper("DAPO: An Open-Source LLM Reinforcement Learning System at Scale", "2503.14476", 2025),
        confidence="code",
        parts=[
            {"type": "soft_overlong"},
            GROUP,
            {"type": "zero_variance_filter"},
            CLIP_HIGHER | {"dual_clip": 10.0},
            TOKENS,
        ],
    ),
)
