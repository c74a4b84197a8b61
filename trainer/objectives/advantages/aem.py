"""AEM: responses weigh by how certain they are for their group."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.advantages.responses import answered, group_scaled, response_entropy, start_logprob
from trainer.objectives.base import Domain, Statistic, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_mean, group_mean, valid_of
from trainer.objectives.stages import SequenceMultiplier
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class Aem(SequenceMultiplier):
    """Adaptive entropy modulation (AEM).

    A response's uncertainty is scaled to [0, 1] inside its group, and its advantage multiplied by exp(-strength h),
    normed to mean 1 in the group. Confident wrong responses raise entropy more, confident right ones lower it more: as
    right answers become common, exploration turns into exploitation by itself.
    """

    title: ClassVar[str] = "Adaptive entropy modulation (AEM)"
    paper: ClassVar[str] = "2605.00425"
    formula: ClassVar[str] = r"A_i \leftarrow A_i\,\frac{e^{-\lambda h_i}}{\operatorname{mean}_g e^{-\lambda h}}"
    domain: ClassVar[Domain] = "group"
    type: Literal["aem"] = "aem"
    strength: float = setting(1.0, help="How fast the weight falls with uncertainty; 0 turns it off.", ge=-20, le=20)
    uncertainty: Literal["entropy", "surprisal"] = setting(
        "entropy", help="Mean entropy of the response, or the mean of -log-prob of its tokens."
    )

    def reads(self) -> frozenset[Statistic]:
        return frozenset({"old_entropy"}) if self.uncertainty == "entropy" else frozenset({"old_logprob"})

    def multiply(self, batch: TokenBatch, step: Step) -> Tensor:
        counted = answered(batch)
        if self.uncertainty == "entropy":
            level = response_entropy(counted, self)
        else:
            level = -completion_mean(start_logprob(counted), counted)
        weight = (-self.strength * group_scaled(level, counted, 1e-12)).exp()
        mean = group_mean(weight, counted)
        return torch.where(valid_of(counted), weight / mean.clamp(min=1e-12), torch.ones_like(weight))


PARTS = (Aem,)
PRESETS = (
    Preset(
        name="aem",
        title="AEM",
        summary="Responses that are confident for their group weigh more, whatever their sign: meant to raise entropy "
        "while confident answers are mostly wrong and to lower it once they are mostly right, without a schedule.",
        when="You want exploration first and exploitation later, and no coefficient.",
        formula=Aem.formula,
        reference=paper(
            "AEM: Adaptive Entropy Modulation for Multi-Turn Agentic Reinforcement Learning", "2605.00425", 2026
        ),
        confidence="reconstructed",
        assumed="Only the abstract was at hand: the scaling inside the group, the exponential and its strength 1 are "
        "ours.",
        parts=[GROUP, {"type": "aem"}, CLIP, TOKENS],
    ),
)
