"""Anchors and explorers: tokens weighed by how widely the model attends where it draws them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_rank, completion_tokens
from trainer.objectives.schedule import linear, progress
from trainer.objectives.stages import TokenShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class AttentionWeight(TokenShaper):
    """Attention-entropy weight.

    Tokens drawn from narrow attention are anchors, those drawn from wide attention explorers. The weight is 1 plus
    lambda times the token's rank within its completion, mapped to [-1, 1]; its mean is one. Over the run lambda glides
    from one kind to the other.
    """

    title: ClassVar[str] = "Attention-entropy weight"
    paper: ClassVar[str] = "2605.07660"
    formula: ClassVar[str] = (
        r"w_t = 1 + \lambda_k u_t,\quad u_t = 2\,\frac{\operatorname{rank}(H^{\text{att}}_t)}{T_i - 1} - 1,\quad "
        r"\lambda_k : -\lambda_0 \to \lambda_0"
    )
    domain: ClassVar[Domain] = "completion"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"attention_entropy"})
    type: Literal["attention_weight"] = "attention_weight"
    strength: float = setting(0.2, help="Largest change of a weight.", ge=0, lt=1)
    first: Literal["anchors", "explorers"] = setting(
        "anchors", help="Which tokens weigh more at the start of the run; the others do at its end."
    )

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        rank = completion_rank(statistic(batch, "attention_entropy", self), batch)
        last = batch.per_token(completion_tokens(batch)) - 1
        place = torch.where((rank >= 0) & (last > 0), 2 * rank / last.clamp(min=1) - 1, torch.zeros_like(last))
        lift = self.lift(progress(step.step, step.total_steps))
        step.metrics["objective/attention_lambda"] = lift
        return batch.need("advantage") * (1 + lift * place)

    def lift(self, x: float) -> float:
        """Return lambda at share x in [0, 1] of the run."""
        start = -self.strength if self.first == "anchors" else self.strength
        return linear(start, -start, x)


PARTS = (AttentionWeight,)
PRESETS = (
    Preset(
        name="attention-anchors",
        title="Anchors and explorers",
        summary="Tokens drawn from narrow attention (anchors) weigh up to a fifth more at the start of the run, tokens "
        "drawn from wide attention (explorers) at its end: structure first, exploration later.",
        when="Needs attention rows; until the trainer gives them, recorded numbers only.",
        formula=AttentionWeight.formula,
        reference=paper("Not All Tokens Learn Alike", "2605.07660", 2026),
        confidence="reconstructed",
        assumed="Only an abstract was at hand: ranks within the completion, a linear course of lambda from -0.2 to 0.2 "
        "and weights of mean one are a proposal.",
        parts=[GROUP, {"type": "attention_weight"}, CLIP, TOKENS],
    ),
)
