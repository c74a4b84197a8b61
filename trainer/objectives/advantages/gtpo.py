"""GTPO's entropy weights, and SEPA, which calms all but the planning tokens before weighing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.advantages.hicra import phrases_setting
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, Reference, paper
from trainer.objectives.reductions import completion_mean, counts_of
from trainer.objectives.stages import TokenShaper
from trainer.objectives.stock import CLIP, GROUP_NO_STD, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

NEGLIGIBLE = 1e-7  # nats; a response whose mean entropy is below has no forks to tell apart


class Gtpo(TokenShaper):
    """Relative entropy weight (GTPO).

    A token's advantage is multiplied by 1 + beta (entropy over the response's mean - 1), never below 0: tokens of
    more than average entropy get more of it, calm ones less.
    """

    title: ClassVar[str] = "Relative entropy weight (GTPO)"
    paper: ClassVar[str] = "2508.04349"
    formula: ClassVar[str] = r"A_{it} \leftarrow A_{it}\,\max\Bigl(0,\ 1 + \beta\,(H_{it}/\bar H_i - 1)\Bigr)"
    domain: ClassVar[Domain] = "completion"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy"})
    type: Literal["gtpo"] = "gtpo"
    beta: float = setting(0.1, help="Strength of the weight; 0 turns it off.", ge=0, le=100)

    def entropy(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return the entropy that tokens are weighed by, [N], nats."""
        return statistic(batch, "old_entropy", self)

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        entropy = self.entropy(batch, step)
        mean = batch.per_token(completion_mean(entropy, batch))
        relative = torch.where(mean > NEGLIGIBLE, entropy / mean.clamp(min=NEGLIGIBLE), torch.ones_like(entropy))
        return batch.need("advantage") * (1 + self.beta * (relative - 1)).clamp(min=0)


class Sepa(Gtpo):
    """Relative entropy weight, pooled (SEPA).

    As GTPO's weight, after the entropy of tokens outside planning phrases was drawn towards their mean in the response:
    among routine tokens the weight levels out, and planning tokens alone are told apart by their entropy.
    """

    title: ClassVar[str] = "Pooled entropy weight (SEPA)"
    paper: ClassVar[str] = ""
    formula: ClassVar[str] = (
        r"H_{it} \leftarrow \lambda\,\bar H_i^{\text{routine}} + (1-\lambda)\,H_{it}\ \text{ outside planning}"
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy", "planning"})
    incompatible: ClassVar[frozenset[str]] = frozenset({"gtpo"})
    type: Literal["sepa"] = "sepa"  # type: ignore[assignment]
    pooling: float = setting(
        1.0, help="How far routine entropy is drawn to its mean; 1 levels it.", ge=0, le=1, knob="sepa_pooling"
    )
    ramp: int = setting(
        0, help="Steps over which the pooling rises from 0; 0 has it at once.", unit="steps", ge=0, le=1_000_000
    )
    phrases: tuple[str, ...] = phrases_setting()

    def options(self, knobs: dict[str, float]) -> dict[str, Any]:
        return {"phrases": self.phrases}

    def entropy(self, batch: TokenBatch, step: Step) -> Tensor:
        entropy, routine = statistic(batch, "old_entropy", self), statistic(batch, "planning", self) <= 0
        share = step.knobs.get("sepa_pooling", self.pooling) * (min(step.step / self.ramp, 1.0) if self.ramp else 1.0)
        others = batch.replace(mask=(counts_of(batch) & routine).to(entropy.dtype))
        mean = batch.per_token(completion_mean(entropy, others))
        return torch.where(routine, torch.lerp(entropy, mean, share), entropy)


PARTS = (Gtpo, Sepa)
PRESETS = (
    Preset(
        name="gtpo",
        title="GTPO, multiplicative",
        summary="Inside a response, tokens of more than average entropy get more of the advantage, calm ones less. "
        "Forks are learnt first; entropy of right answers falls where it was highest.",
        when="A light form of token credit without a second model.",
        formula=Gtpo.formula,
        reference=paper(
            "GTPO and GRPO-S: Token and Sequence-Level Reward Shaping with Policy Entropy", "2508.04349", 2025
        ),
        confidence="secondary",
        variants="The paper hands out entropy shares of the reward among right and wrong answers; this is a third "
        "party's simpler multiplicative form.",
        parts=[GROUP_NO_STD, {"type": "gtpo"}, CLIP, TOKENS],
    ),
    Preset(
        name="sepa",
        title="SEPA",
        summary="GTPO and HICRA together, with the entropy of all but planning tokens drawn to its mean: only planning "
        "tokens are weighed by their entropy, and get the planning credit on top.",
        when="As HICRA, where surface variety of wording drowns the entropy of decisions.",
        formula=Sepa.formula,
        reference=Reference(
            title="textpolicy: Selective Entropy Pooling with Annealing",
            year=2026,
            url="https://github.com/teilomillet/textpolicy",
        ),
        confidence="secondary",
        parts=[GROUP_NO_STD, {"type": "sepa"}, {"type": "hicra"}, CLIP, TOKENS],
    ),
)
