"""ETTRL's entropy-based advantage reshaping."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.advantages.responses import answered, response_entropy
from trainer.objectives.base import Domain, Statistic, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import group_mean, valid_of
from trainer.objectives.stages import TokenShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class Ear(TokenShaper):
    """Entropy-based advantage reshaping (EAR).

    Residual: the advantage is multiplied by 2 minus the response's mean entropy over the group's, so that confident
    responses weigh up to twice. Clip: the advantage is cut off at a bound instead.
    """

    title: ClassVar[str] = "Entropy-based reshaping (ETTRL)"
    paper: ClassVar[str] = "2508.11356"
    formula: ClassVar[str] = r"A_i \leftarrow \Bigl(2 - \bar H_i / \operatorname{mean}_g \bar H\Bigr) A_i"
    domain: ClassVar[Domain] = "group"
    type: Literal["ear"] = "ear"
    form: Literal["residual", "clip"] = setting("residual", help="Scale by the relative entropy, or cut off.")
    bound: float = setting(1.0, help="Largest size of the advantage.", gt=0, le=1000, show_if={"form": "clip"})
    floor: float = setting(
        0.0,
        help="Smallest factor; below 0 a response with more than twice the group's entropy would be learnt backwards.",
        ge=-1000,
        le=1,
        advanced=True,
        show_if={"form": "residual"},
    )

    def reads(self) -> frozenset[Statistic]:
        return frozenset({"old_entropy"}) if self.form == "residual" else frozenset()

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage = batch.need("advantage")
        if self.form == "clip":
            return advantage.clamp(-self.bound, self.bound)
        counted = answered(batch)
        entropy = response_entropy(counted, self)
        mean = group_mean(entropy, counted)
        usable = valid_of(counted) & (mean > 0)
        factor = torch.where(usable, 2 - entropy / torch.where(usable, mean, 1.0), 1.0)
        return advantage * batch.per_token(factor.clamp(min=self.floor))


PARTS = (Ear,)
PRESETS = (
    Preset(
        name="ettrl-ear",
        title="ETTRL, advantage reshaping",
        summary="Responses calmer than their group weigh more, livelier ones less. It keeps uncertain, often "
        "mislabelled responses from steering; right answers lose entropy a little faster.",
        when="Rewards come from a vote of the responses and early votes are unsure. The preset ettrl is the whole "
        "method, vote and branching rollouts included.",
        formula=Ear.formula,
        reference=paper(
            "ETTRL: Balancing Exploration and Exploitation in LLM Test-Time RL via Entropy Mechanism",
            "2508.11356",
            2025,
        ),
        confidence="secondary",
        assumed="The floor of the factor at 0; the bound 1 of the clip form.",
        parts=[GROUP, {"type": "ear"}, CLIP, TOKENS],
    ),
)
