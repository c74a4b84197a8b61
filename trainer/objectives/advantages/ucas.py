"""UCAS: sure-and-wrong is punished more, unsure-and-right rewarded more, and large logits cost a little."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.advantages.responses import answered, bounds
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import (
    completion_mean,
    completion_sum,
    counts_of,
    group_mean,
    group_size,
    group_sum,
    sequence_advantage,
    valid_of,
)
from trainer.objectives.stages import SequenceMultiplier, TokenShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

LIMIT = 20.0  # of the exponent: without the std it has no scale, and exp of a sum over thousands of tokens overflows


class UcasCertainty(SequenceMultiplier):
    """Certainty factor (UCAS).

    A token's certainty is logsumexp minus mean of its logits, the divergence from the uniform distribution up to a
    constant. The response's certainty is compared inside its group: where the advantage is positive the factor falls
    with it, where it is negative it rises. Described: mean over the tokens. Released: their sum, which favours short
    right and punishes long wrong responses. A lone response keeps its advantage.
    """

    title: ClassVar[str] = "Certainty factor (UCAS)"
    paper: ClassVar[str] = "2510.10649"
    formula: ClassVar[str] = (
        r"w_i = e^{-\beta_+ \hat C_i}\ (A_i > 0),\quad e^{\beta_- \hat C_i}\ (A_i \le 0),\qquad "
        r"c_{it} = \log\sum_v e^{z_v} - \bar z"
    )
    domain: ClassVar[Domain] = "group"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"logsumexp", "mean_logit"})
    type: Literal["ucas_certainty"] = "ucas_certainty"
    variant: Literal["described", "released"] = setting(
        "described", help="Mean certainty of the tokens, as described, or their sum, as the released code has it."
    )
    positive: float = setting(0.25, help="How much certainty damps positive advantages.", ge=0, le=10)
    negative: float = setting(0.35, help="How much certainty amplifies negative advantages.", ge=0, le=10)
    std: bool = setting(
        True, help="Divide the centred certainty by the group's std; set it as the group advantage's.", advanced=True
    )
    epsilon: float = setting(1e-6, help="Added to the std.", gt=0, le=1, advanced=True)

    def multiply(self, batch: TokenBatch, step: Step) -> Tensor:
        certainty = statistic(batch, "logsumexp", self) - statistic(batch, "mean_logit", self)
        counted = answered(batch)
        reduce = completion_sum if self.variant == "released" else completion_mean
        total = reduce(certainty, counted)
        size = group_size(counted)
        centred = torch.where(
            valid_of(counted) & (size > 1), total - group_mean(total, counted), torch.zeros_like(total)
        )
        if self.std:
            variance = group_sum(centred.square(), counted) / (size - 1).clamp(min=1)
            centred = centred / (variance.sqrt() + self.epsilon)
        exponent = torch.where(sequence_advantage(batch) > 0, -self.positive * centred, self.negative * centred)
        return exponent.clamp(-LIMIT, LIMIT).exp()


class UcasLogitPenalty(TokenShaper):
    """Logit penalty (UCAS).

    The raw logit of the sampled token, scaled to [0, 1] over all tokens of the step, is taken off the advantage; a
    positive advantage falls to 0 at most. Responses of groups with equal rewards get the penalty alone.
    """

    title: ClassVar[str] = "Logit penalty (UCAS)"
    paper: ClassVar[str] = "2510.10649"
    formula: ClassVar[str] = r"A_{it} \leftarrow A_{it} - \lambda\,\tilde z_{it},\quad \ge 0 \text{ where } A_{it} > 0"
    domain: ClassVar[Domain] = "step"
    may_flip: ClassVar[bool] = True
    needs: ClassVar[frozenset[Statistic]] = frozenset({"token_logit"})
    type: Literal["ucas_logit_penalty"] = "ucas_logit_penalty"
    penalty: float = setting(0.05, help="Taken off the advantage at the largest logit.", ge=0, le=10)
    epsilon: float = setting(1e-6, help="Added to the range of the logits.", gt=0, le=1, advanced=True)

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        logit, advantage = statistic(batch, "token_logit", self), batch.need("advantage")
        low, high = bounds(logit, counts_of(batch))
        scaled = (logit - low) / (high - low + self.epsilon)
        if torch.isclose(high, low):  # nothing to tell tokens apart by
            scaled = torch.full_like(scaled, 0.5)
        shaped = advantage - self.penalty * scaled
        return torch.where(advantage > 0, shaped.clamp(min=0), shaped)


PARTS = (UcasCertainty, UcasLogitPenalty)
PRESETS = (
    Preset(
        name="ucas",
        title="UCAS",
        summary="Right answers given without certainty are rewarded more, wrong answers given with certainty "
        "punished more, and tokens with large logits pay a small penalty. Overconfident tokens lose probability, so "
        "entropy falls more slowly.",
        when="Wrong answers have become as confident as right ones.",
        formula=UcasCertainty.formula,
        reference=paper(
            "Unlocking Exploration in RLVR: Uncertainty-aware Advantage Shaping for Deeper Reasoning",
            "2510.10649",
            2025,
        ),
        confidence="code",
        variants="The released code sums certainty over the tokens of a response and so couples it to length; the "
        "description is of a mean.",
        parts=[GROUP, {"type": "ucas_certainty"}, {"type": "ucas_logit_penalty"}, CLIP, TOKENS],
    ),
)
