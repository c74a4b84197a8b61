"""Reasoning with exploration: uncertain tokens get a larger advantage, by at most half of what they had."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import TokenWeight
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class EntropyAdvantage(TokenWeight):
    """Entropy-shaped advantage.

    The present entropy of a token, scaled by alpha, is added to its advantage, at most the kappa-th part of the
    advantage's size: the sign stays, and a zero advantage stays zero. Nothing is differentiated by entropy.
    """

    title: ClassVar[str] = "Entropy-shaped advantage"
    paper: ClassVar[str] = "2506.14758"
    formula: ClassVar[str] = r"A_{it} \leftarrow A_{it} + \min\bigl(\alpha\,H_{it},\ |A_{it}|/\kappa\bigr)"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy"})
    type: Literal["entropy_advantage"] = "entropy_advantage"
    alpha: float = setting(
        0.4, help="Advantage added for each nat of entropy.", ge=0, le=100, knob="entropy_advantage_alpha"
    )
    kappa: float = setting(2.0, help="At most the kappa-th part of the advantage is added.", ge=1, le=1000)

    def reweigh(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage, entropy = batch.need("advantage"), statistic(batch, "entropy", self).detach()
        alpha = step.knobs.get("entropy_advantage_alpha", self.alpha)
        return advantage + torch.minimum(alpha * entropy, advantage.abs() / self.kappa)


PARTS = (EntropyAdvantage,)
PRESETS = (
    Preset(
        name="reasoning-with-exploration",
        title="Reasoning with exploration",
        summary="Tokens the policy is unsure of get a little more advantage than the rest of their response: right "
        "answers teach their forks more, wrong ones blame them less, so exploratory steps become likelier. There is "
        "no entropy gradient, and to first order entropy falls a little faster.",
        when="A gentle change to GRPO that cannot turn an advantage round.",
        formula=EntropyAdvantage.formula,
        reference=paper("Reasoning with Exploration: An Entropy Perspective", "2506.14758", 2025),
        confidence="paper",
        parts=[GROUP, {"type": "entropy_advantage"}, CLIP, TOKENS],
    ),
)
