"""SAPO: a soft gate in place of the clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import RatioSurrogate, log_ratio
from trainer.objectives.stock import GROUP, SEQUENCES
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class SAPO(RatioSurrogate):
    """Soft gate on the ratio (SAPO).

    Loss -A (4 / tau) sigmoid(tau (r - 1)): on-policy it is the plain ratio, and the gradient fades smoothly as the
    ratio leaves 1 on either side. Negative advantages fade faster.
    """

    title: ClassVar[str] = "Soft gate"
    paper: ClassVar[str] = "2511.20347"
    formula: ClassVar[str] = r"x_t = -A_t\,\tfrac{4}{\tau}\,\sigma\bigl(\tau (r_t - 1)\bigr)"
    blind: ClassVar[bool] = True
    type: Literal["sapo"] = "sapo"
    tau_positive: float = setting(
        1.0, help="How fast the gradient fades where the advantage is positive.", gt=0, le=100
    )
    tau_negative: float = setting(1.05, help="How fast it fades elsewhere.", gt=0, le=100)

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage, ratio = batch.need("advantage"), log_ratio(batch).exp()
        tau = torch.full_like(ratio, self.tau_negative).masked_fill(advantage > 0, self.tau_positive)
        return self.corrected(-advantage * (4 / tau) * torch.sigmoid(tau * (ratio - 1)), batch, step)


PARTS = (SAPO,)
PRESETS = (
    Preset(
        name="sapo",
        title="SAPO",
        summary="The hard clip becomes a sigmoid gate: tokens far off-policy are weighed down instead of cut off, and "
        "those with negative advantage more quickly, because they move many unrelated tokens. Nothing holds entropy.",
        when="Several minibatches per step where PPO's clip throws away too much or GSPO's too bluntly.",
        formula=SAPO.formula,
        reference=paper("Soft Adaptive Policy Optimization", "2511.20347", 2025),
        confidence="code",
        parts=[GROUP, {"type": "sapo"}, SEQUENCES],
    ),
)
