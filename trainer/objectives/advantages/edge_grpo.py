"""EDGE-GRPO: advantages over the response's relative entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.advantages.responses import answered, response_entropy
from trainer.objectives.base import Domain, Statistic, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import step_mean, valid_of
from trainer.objectives.stages import SequenceMultiplier
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class EdgeEntropy(SequenceMultiplier):
    """Entropy-driven advantage (EDGE-GRPO).

    An advantage is multiplied by the step's mean response entropy over the response's own: confident responses weigh
    more, for either sign. The factor is held between 1/limit and limit, because a response of certain tokens has an
    entropy near 0.
    """

    title: ClassVar[str] = "Entropy-driven advantage (EDGE-GRPO)"
    paper: ClassVar[str] = "2507.21848"
    formula: ClassVar[str] = r"A_i \leftarrow A_i\,\operatorname{mean}_j \bar H_j \,/\, \bar H_i"
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy"})
    type: Literal["edge_entropy"] = "edge_entropy"
    limit: float = setting(10.0, help="Largest factor, and one over the smallest.", ge=1, le=1e6, advanced=True)

    def multiply(self, batch: TokenBatch, step: Step) -> Tensor:
        counted = answered(batch)
        entropy, valid = response_entropy(counted, self).clamp(min=0), valid_of(counted)
        mean = step_mean(entropy, valid)
        factor = mean / torch.maximum(entropy, mean / self.limit).clamp(min=torch.finfo(entropy.dtype).tiny)
        return torch.where(valid & (mean > 0), factor.clamp(1 / self.limit, self.limit), torch.ones_like(entropy))


PARTS = (EdgeEntropy,)
PRESETS = (
    Preset(
        name="edge-grpo",
        title="EDGE-GRPO",
        summary="Confident responses get a larger advantage than uncertain ones with the same reward, so responses "
        "of a group no longer share one number. Confident right answers lose entropy faster, confident wrong ones "
        "gain it faster.",
        when="Many groups end with nearly equal advantages.",
        formula=EdgeEntropy.formula,
        reference=paper(
            "EDGE-GRPO: Entropy-Driven GRPO with Guided Error Correction for Advantage Diversity", "2507.21848", 2025
        ),
        confidence="code",
        variants="The authors' trainer takes the batch mean over one device and has no limit; the guided correction of "
        "wrong answers is not part of this preset.",
        parts=[GROUP, {"type": "edge_entropy"}, CLIP, TOKENS],
    ),
)
