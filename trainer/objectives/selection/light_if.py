"""Light-IF: an entropy bonus that goes to the tokens whose update costs the most entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_tokens, counts_of, step_mean
from trainer.objectives.stages import Regulariser
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class CovarianceBonus(Regulariser):
    """Covariance-weighted entropy bonus (Light-IF).

    Entropy is rewarded where advantage and log-prob vary together: a softmax of their covariance within the completion,
    times the completion's length, capped, is the token's weight. As released the factor is fixed, the cap is lower and
    the weights carry a gradient of their own, into the log-probs.
    """

    title: ClassVar[str] = "Covariance-weighted entropy bonus"
    paper: ClassVar[str] = "2508.03178"
    formula: ClassVar[str] = (
        r"L = L_{\text{policy}} - \frac{c}{n} \sum_t w_t H_t,\quad "
        r"w_t = \min\left(T_i \operatorname{softmax}_t\left(\tfrac{(A_t - \bar A)(\ell_t - \bar\ell)}{\tau}\right), "
        r"100\right)"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy", "entropy_grad"})
    type: Literal["covariance_bonus"] = "covariance_bonus"
    variant: Literal["described", "released"] = setting(
        "described", help="As the paper describes it, or as the authors' code computes it (see the explanation)."
    )
    coefficient: float = setting(
        0.05, help="Weight of the weighted entropy in the loss.", ge=-1, le=1, knob="entropy_coefficient"
    )
    temperature: float = setting(
        1.0, help="Divides the covariances before the softmax.", gt=0, le=1000, show_if={"variant": "described"}
    )
    cap: float = setting(100.0, help="Largest weight.", gt=0, le=10_000, show_if={"variant": "described"})
    gain: float = setting(10.0, help="Fixed factor on the softmax.", gt=0, le=10_000, show_if={"variant": "released"})
    gain_cap: float = setting(5.0, help="Largest weight.", gt=0, le=10_000, show_if={"variant": "released"})

    def regularise(self, batch: TokenBatch, step: Step) -> Tensor:
        counts = counts_of(batch)
        weight, coefficient = self._weight(batch), step.knobs["entropy_coefficient"]
        step.metrics["objective/entropy_coefficient"] = coefficient
        step.metrics["objective/bonus_weight"] = float(step_mean(weight.detach(), counts))
        return -coefficient * step_mean(weight * statistic(batch, "entropy", self), counts)

    def _weight(self, batch: TokenBatch) -> Tensor:
        """Return the weight of each token's entropy, [N]; constant as described, differentiable as released."""
        counts, advantage, logprob = counts_of(batch), batch.need("advantage"), batch.logprob
        logprob = logprob.detach() if self.variant == "described" else logprob
        middle = step_mean(logprob.detach(), counts)
        covariance = (advantage - step_mean(advantage, counts)) * (logprob - middle)
        if self.variant == "released":
            return (self.gain * completion_softmax(covariance, batch)).clamp(0, self.gain_cap)
        share = completion_softmax(covariance / self.temperature, batch)
        return (batch.per_token(completion_tokens(batch)) * share).clamp(0, self.cap)


def completion_softmax(values: Tensor, batch: TokenBatch) -> Tensor:
    """Return the softmax of each completion's tokens that count, [N], differentiable; 0 elsewhere."""
    counts = counts_of(batch)
    kept = torch.where(counts, values, -torch.inf)
    largest = values.new_full((batch.sequences,), -torch.inf)
    largest = largest.scatter_reduce(0, batch.sequence, kept.detach(), "amax")
    powers = torch.where(counts, (torch.where(counts, values - batch.per_token(largest), 0)).exp(), 0)
    total = batch.per_token(batch.per_sequence_sum(powers))
    return powers / torch.where(total > 0, total, 1)


PARTS = (CovarianceBonus,)
PRESETS = (
    Preset(
        name="light-if",
        title="Light-IF",
        summary="An entropy bonus that is handed out by covariance: tokens that are both likely and rewarded, whose "
        "update sharpens the policy most, get the largest share of it. The fall of entropy slows where it would be "
        "fastest.",
        when="Instruction following and other tasks where a plain bonus disturbs all tokens alike.",
        formula=CovarianceBonus.formula,
        reference=paper("Light-IF: Endowing LLMs with Generalizable Reasoning", "2508.03178", 2025),
        confidence="code",
        assumed="The form described (factor T, cap 100, coefficient 0.05) is known at second hand.",
        variants="In the authors' code the factor is 10, the cap 5, and the weights are not constants: their gradient "
        "reaches the log-probs (variant = released). Their training path overwrites the result, so the term never "
        "acted.",
        parts=[GROUP, CLIP, {"type": "covariance_bonus"}, TOKENS],
    ),
)
