"""RLRT: in right responses, tokens the policy prefers more than one who knows the solution weigh more."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.advantages.responses import start_logprob
from trainer.objectives.base import Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import LOG_RATIO_LIMIT
from trainer.objectives.stages import TokenShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class Rlrt(TokenShaper):
    """Reversed teacher (RLRT).

    The teacher is the same model with the solution in its prompt. Where the advantage is positive, part of it is
    multiplied by the bounded ratio of policy to teacher: what the policy found by itself counts more than what the
    solution would have dictated.
    """

    title: ClassVar[str] = "Reversed teacher (RLRT)"
    paper: ClassVar[str] = "2605.10781"
    formula: ClassVar[str] = (
        r"A_t \leftarrow A\,\bigl[(1-\lambda) + \lambda\operatorname{clip}(e^{D_t},\,1-\epsilon,\,1+\epsilon)\bigr]"
        r"\ (A>0),\quad D_t = \log\pi - \log\pi_{\text{teacher}}"
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob", "teacher_logprob"})
    type: Literal["rlrt"] = "rlrt"
    share: float = setting(0.5, help="Part of the advantage that is weighed by the ratio.", ge=0, le=1)
    bound: float = setting(0.2, help="How far the ratio may be from 1.", ge=0, le=1)

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage = batch.need("advantage")
        lead = start_logprob(batch) - statistic(batch, "teacher_logprob", self)
        ratio = lead.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(1 - self.bound, 1 + self.bound)
        return torch.where(advantage > 0, advantage * (1 - self.share + self.share * ratio), advantage)


PARTS = (Rlrt,)
PRESETS = (
    Preset(
        name="rlrt",
        title="RLRT",
        summary="In right answers, tokens that the policy likes better than a copy that was shown the solution are "
        "reinforced more, the others less. Paths of its own keep their probability; entropy falls less towards the "
        "reference solution.",
        when="Solutions are at hand and imitation of them narrows the policy.",
        formula=Rlrt.formula,
        reference=paper(
            "Rebellious Student: Reversing Teacher Signals for Reasoning Exploration with Self-Distilled RLVR",
            "2605.10781",
            2026,
        ),
        confidence="reconstructed",
        assumed="Only a summary was at hand: the mixture, its share 0.5 and the bound 0.2 are ours.",
        parts=[GROUP, {"type": "rlrt"}, CLIP, TOKENS],
    ),
)
