"""ECHO's update: entropy and confidence shape the advantage, the confidence at the end of a completion its clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from trainer.lazy import torch
from trainer.objectives.base import Domain, ObjectivePart, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import (
    completion_rank,
    completion_sum,
    completion_tokens,
    counts_of,
    group_sum,
    whiten,
)
from trainer.objectives.stages import ClipRange, TokenShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

TOP = 5  # likeliest tokens the confidence is the mean probability of, so it is at most 1 / TOP


def confidence_of(batch: TokenBatch, part: ObjectivePart) -> Tensor:
    """Return the mean probability of the five likeliest tokens, [N] in [0, 0.2]."""
    return statistic(batch, "top5_prob", part).clamp(0, 1)


class EchoAdvantage(TokenShaper):
    """Entropy-confidence advantage (ECHO).

    S = entropy score + unconfidence score, both whitened over the step and the sum cut off at the limit;
    A(1 + c1 S), and optionally + c2 (S - its mean over the group's tokens).
    """

    title: ClassVar[str] = "Entropy-confidence advantage"
    paper: ClassVar[str] = "2602.02150"
    formula: ClassVar[str] = (
        r"S_t = \operatorname{clip}\bigl(\alpha\,z(H_t) + \beta\,z(1-C_t), \pm s_{\max}\bigr),\quad "
        r" A_t \to A_t (1 + c_1 S_t) + c_2 (S_t - \bar S_g)"
    )
    domain: ClassVar[Domain] = "step"
    may_flip: ClassVar[bool] = True
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy", "top5_prob"})
    type: Literal["echo_advantage"] = "echo_advantage"
    entropy_weight: float = setting(1.0, help="alpha: weight of the entropy score.", ge=-10, le=10, advanced=True)
    confidence_weight: float = setting(
        1.0, help="beta: weight of the unconfidence score.", ge=-10, le=10, advanced=True
    )
    limit: float = setting(2.0, help="Largest magnitude of S.", gt=0, le=100)
    factor: float = setting(0.1, help="c1: relative change of the advantage for each unit of S.", ge=-1, le=1)
    addend: float = setting(0.0, help="c2: added to the advantage for each unit of S above its group's.", ge=-1, le=1)

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        counts, advantage = counts_of(batch), batch.need("advantage")
        score = self.entropy_weight * whiten(statistic(batch, "old_entropy", self), counts)
        score = score + self.confidence_weight * whiten(1 - confidence_of(batch, self), counts)
        score = score.clamp(-self.limit, self.limit)
        shaped = advantage * (1 + self.factor * score)
        if self.addend:
            tokens = group_sum(completion_tokens(batch), batch).clamp(min=1)
            mean = group_sum(completion_sum(score, batch), batch) / tokens
            shaped = shaped + self.addend * (score - batch.per_token(mean))
        return torch.where(counts, shaped, torch.zeros_like(shaped))


class EchoClip(ClipRange):
    """Clip by the confidence of the completion's end (ECHO).

    Both ends become least + (most - least) sigmoid(steepness (1 - C)), C the confidence of the last tokens: a confident
    completion gets the tighter clip. Described: C is the probability of the five likeliest tokens together. Released:
    their mean, at most 0.2, so the clip hardly varies.
    """

    title: ClassVar[str] = "Confidence clip"
    paper: ClassVar[str] = "2602.02150"
    formula: ClassVar[str] = (
        r"\epsilon_i = \epsilon_{\min} + (\epsilon_{\max} - \epsilon_{\min})\,\sigma\bigl(\kappa (1 - C_i)\bigr)"
    )
    domain: ClassVar[Domain] = "completion"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"top5_prob"})
    type: Literal["echo_clip"] = "echo_clip"
    variant: Literal["described", "released"] = setting(
        "described",
        help="Confidence as the total probability of the five likeliest tokens, or as released their mean.",
    )
    least: float = setting(0.05, help="Clip of a confident completion.", ge=0, le=1)
    most: float = setting(0.2, help="Clip of an unconfident completion.", ge=0, le=1)
    steepness: float = setting(4.0, help="kappa: how fast the clip changes with confidence.", ge=0, le=100)
    window: int = setting(16, help="Last tokens of a completion whose confidence counts.", unit="tokens", ge=1, le=4096)

    @model_validator(mode="after")
    def _ordered(self) -> EchoClip:
        if self.least > self.most:
            raise ValueError(f"least is {self.least}, above most, {self.most}; lower it")
        return self

    def clip(self, batch: TokenBatch, step: Step, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        confidence = self.tail(batch) * (1 if self.variant == "released" else TOP)
        width = self.least + (self.most - self.least) * torch.sigmoid(self.steepness * (1 - confidence.clamp(max=1)))
        width = batch.per_token(width).to(low.dtype)
        return width, width.clone()

    def tail(self, batch: TokenBatch) -> Tensor:
        """Return the mean confidence of each completion's last tokens, [S]; 0 for a completion without any."""
        number = completion_tokens(batch)
        rank = completion_rank(batch.position.to(batch.logprob.dtype), batch)
        last = rank >= batch.per_token(number) - self.window
        confidence = confidence_of(batch, self)
        total = completion_sum(torch.where(last, confidence, torch.zeros_like(confidence)), batch)
        return total / number.clamp(min=1, max=self.window)


PARTS = (EchoAdvantage, EchoClip)
PRESETS = (
    Preset(
        name="echo",
        title="ECHO (update)",
        summary="Tokens where the policy is uncertain and unconfident learn a little more; completions that end "
        "confidently get a tighter clip, so early, noisy labels sharpen the policy less and entropy falls more slowly. "
        "The preset echo-rollout has its branching and pruning of rollouts too.",
        when="Training on majority votes, with several minibatches per step.",
        formula=EchoAdvantage.formula + r",\quad " + EchoClip.formula,
        reference=paper(
            "ECHO: Entropy-Confidence Hybrid Optimization for Test-Time Reinforcement Learning", "2602.02150", 2026
        ),
        confidence="code",
        assumed="Confidence in the described clip is taken as the total probability of the five likeliest tokens, "
        "which spans 0 to 1; the printed mean does not exceed 0.2.",
        variants="In the released code the confidence is that mean, and the clip lies between 0.194 and 0.197 whatever "
        "the completion: variant = released in echo_clip.",
        parts=[GROUP, {"type": "echo_advantage"}, {"type": "echo_clip"}, CLIP, TOKENS],
    ),
)
