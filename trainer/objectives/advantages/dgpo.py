"""DGPO: tokens at which the policy has left its origin, while still unsure, carry the response's credit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_tokens, counts_of
from trainer.objectives.stages import TokenShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

COMMON_VOCABULARY = 151_936  # where nobody says: only the log counts, which differs little between models


class Dgpo(TokenShaper):
    """Distribution-guided credit (DGPO).

    A token's score is its squared Hellinger distance to the reference policy times its entropy over log of the
    vocabulary. A softmax of the scores over a response, times its length, weighs the advantage: the mean weight of a
    response is 1. No KL penalty goes with it.
    """

    title: ClassVar[str] = "Distribution-guided credit (DGPO)"
    paper: ClassVar[str] = "2605.03327"
    formula: ClassVar[str] = (
        r"w_t = T_i\,\operatorname{softmax}_t\bigl(d_t h_t^{\kappa}/\tau\bigr),\quad "
        r"d_t = 1 - \sum_v \sqrt{\pi\,\pi_{\text{ref}}},\quad h_t = H_t/\log V"
    )
    domain: ClassVar[Domain] = "completion"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"hellinger", "old_entropy"})
    type: Literal["dgpo"] = "dgpo"
    tau: float = setting(0.5, help="Temperature of the softmax over a response.", gt=0, le=100)
    kappa: float = setting(1.0, help="Exponent of the entropy; 0 leaves it out.", ge=0, le=10)
    vocabulary: int = setting(
        0,
        help="Size of the vocabulary that entropy is measured by; 0 takes the model's.",
        ge=0,
        le=10_000_000,
        advanced=True,
    )

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        size = self.vocabulary or step.vocabulary or COMMON_VOCABULARY
        entropy = statistic(batch, "old_entropy", self).clamp(min=0) / math.log(max(size, 2))
        score = statistic(batch, "hellinger", self) * entropy.pow(self.kappa) / self.tau
        return batch.need("advantage") * self._weight(score, batch)

    @staticmethod
    def _weight(score: Tensor, batch: TokenBatch) -> Tensor:
        """Return length * softmax of the scores over each response's tokens that count, [N]; 0 for others."""
        counts = counts_of(batch)
        kept = torch.where(counts, score, -torch.inf)
        top = score.new_full((batch.sequences,), -torch.inf).scatter_reduce(0, batch.sequence, kept, "amax")
        power = torch.where(counts, score - batch.per_token(top), -torch.inf).exp()
        total = batch.per_token(batch.per_sequence_sum(power))
        return torch.where(counts, power / total.clamp(min=1) * batch.per_token(completion_tokens(batch)), 0.0)


PARTS = (Dgpo,)
PRESETS = (
    Preset(
        name="dgpo",
        title="DGPO",
        summary="Credit goes to tokens at which the policy differs from where it started and is still unsure. "
        "Discoveries move more than routine; the total update of a response stays, and nothing pulls back to the "
        "reference.",
        when="Long responses whose success hangs on few new moves; costs a pass of the reference model.",
        formula=Dgpo.formula,
        reference=paper(
            "DGPO: Distribution-Guided Policy Optimization for Fine-Grained Credit Assignment", "2605.03327", 2026
        ),
        confidence="secondary",
        parts=[GROUP, {"type": "dgpo"}, CLIP, TOKENS],
    ),
)
