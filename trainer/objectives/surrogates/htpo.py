"""HTPO: an objective for each token by difficulty of the prompt, correctness of the answer and entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import RatioSurrogate, clip_of, clipped, dual, log_ratio, report_clip, unit
from trainer.objectives.reductions import (
    completion_rank,
    completion_ranked,
    completion_sum,
    completion_tokens,
    counts_of,
    group_mean,
)
from trainer.objectives.stock import GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


@dataclass(frozen=True)
class Split:
    """The tokens of each completion by entropy, [N] bool each."""

    high: Tensor
    low: Tensor
    lowest: Tensor  # strictly below the k-th smallest: k = 1 names none
    highest: Tensor  # at or above the k-th largest


def entropy_split(entropy: Tensor, batch: TokenBatch, share: float, lowest: float, highest: float) -> Split:
    """Split each completion's tokens at its `share` highest entropies; at least one token is high."""
    counts, number = counts_of(batch), completion_tokens(batch).double()
    rank = completion_rank(entropy, batch)

    def at(place: Tensor) -> Tensor:
        return batch.per_token(completion_ranked(entropy, rank, batch, place.long()))

    def some(part: float, of: Tensor) -> Tensor:
        return (part * of).floor().clamp(min=1)

    high = counts & (entropy >= at(number - some(share, number)))
    low = counts & ~high
    many_high, many_low = (completion_sum(part.double(), batch) for part in (high, low))
    return Split(
        high=high,
        low=low,
        lowest=low & (entropy < at(some(lowest, many_low) - 1)),
        highest=high & (entropy >= at(number - some(highest, many_high))),
    )


class HTPO(RatioSurrogate):
    """Hierarchical token objective (HTPO).

    Prompts are hard or easy by the share of right answers in their group, tokens high or low by entropy in their
    completion. Low tokens get the clipped ratio; of hard prompts' right answers the lowest get nothing. High tokens of
    easy prompts' right answers are clipped and the highest get nothing. High tokens of hard prompts' right answers are
    pulled back into the clip range from both sides, those of wrong answers from below. Released: a right token below
    the range is pushed further down instead.
    """

    title: ClassVar[str] = "Hierarchical token objective"
    paper: ClassVar[str] = "2605.08283"
    formula: ClassVar[str] = (
        r"x_t^{\text{hard, right, high}} = A_t \begin{cases}"
        r"(1+\epsilon_+)\,q_t & r_t > 1+\epsilon_+ \\ -\operatorname{sg}(1/r_t)\,q_t & r_t < 1-\epsilon_- \\"
        r"-r_t & \text{else}\end{cases}\qquad "
        r"x_t^{\text{wrong, high}} = A_t \begin{cases}(1-\epsilon_-)\,q_t & r_t < 1-\epsilon_- \\ -r_t &"
        r" \text{else}\end{cases}\qquad q_t = \frac{\pi(o_t)}{\operatorname{sg}\,\pi(o_t)}"
    )
    domain: ClassVar[Domain] = "group"
    may_flip: ClassVar[bool] = True
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob", "entropy", "correct"})
    type: Literal["htpo"] = "htpo"
    variant: Literal["described", "released"] = setting(
        "described",
        help="What happens to right tokens of hard prompts below the clip range: pulled up, or pushed down.",
    )
    clip_low: float = setting(0.2, help="The ratio may fall this far below 1.", ge=0, le=1, knob="clip_low")
    clip_high: float = setting(0.28, help="The ratio may rise this far above 1.", ge=0, le=100, knob="clip_high")
    dual_clip: float = setting(
        10.0,
        help="Bound on the ratio of tokens with negative advantage; 0 turns it off.",
        ge=0,
        le=1000,
        advanced=True,
    )
    high_share: float = setting(0.2, help="Share of a completion's tokens that are high-entropy.", gt=0, le=1)
    hard_below: float = setting(0.6, help="Prompts with a smaller share of right answers are hard.", ge=0, le=1)
    lowest_share: float = setting(
        0.006, help="Share of low tokens without gradient in right answers to hard prompts.", ge=0, le=1
    )
    highest_share: float = setting(
        0.02, help="Share of high tokens without gradient in right answers to easy prompts, at least one.", ge=0, le=1
    )

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        entropy = statistic(batch, "entropy", self).detach()
        split = entropy_split(entropy, batch, self.high_share, self.lowest_share, self.highest_share)
        right = statistic(batch, "correct", self) > 0
        hard = batch.per_token(group_mean(right.to(entropy.dtype), batch) < self.hard_below)
        values = self._values(batch, step, split, batch.per_token(right), hard)
        stopped = batch.per_token(right) & ((hard & split.lowest) | (~hard & split.highest))
        values = torch.where(stopped, torch.zeros_like(values), values)
        return self.corrected(dual(values, batch.need("advantage"), self.dual_clip), batch, step)

    def _values(self, batch: TokenBatch, step: Step, split: Split, right: Tensor, hard: Tensor) -> Tensor:
        """Return the token losses before any is stopped, [N]."""
        advantage, ratio, one = batch.need("advantage"), log_ratio(batch).exp(), unit(batch)
        below, above = clip_of(batch, step)
        low, high = 1 - below, 1 + above
        report_clip(batch, step, ratio, low, high)
        under, over = ratio < low, ratio > high
        free, safe = -advantage * ratio, clipped(advantage, ratio, low, high)
        upwards = 1 if self.variant == "released" else -1
        found = torch.where(under, upwards / ratio.detach() * one * advantage, free)
        found = torch.where(over, high * one * advantage, found)
        wrong = torch.where(under, low * one * advantage, free)
        return torch.where(split.high & ~right, wrong, torch.where(split.high & right & hard, found, safe))


PARTS = (HTPO,)
PRESETS = (
    Preset(
        name="htpo",
        title="HTPO",
        summary="Forking tokens explore where that is needed: in right answers to hard prompts and in wrong answers "
        "they are not clipped but pulled back once they leave the range. In right answers to easy prompts they are "
        "clipped and the most uncertain is left alone. So entropy is kept where prompts are hard and falls where they "
        "are easy.",
        when="Tasks with a clear right and wrong, mixed difficulty, groups of 16 or so.",
        formula=HTPO.formula,
        reference=paper(
            "HTPO: Towards Exploration-Exploitation Balanced Policy Optimization via Hierarchical Token-level "
            "Objective Control",
            "2605.08283",
            2026,
        ),
        confidence="code",
        variants="In the released code a right token of a hard prompt that has fallen below the range is pushed down "
        "further, probably a slip of sign; described (the default) pulls it up. variant = released gives theirs.",
        parts=[GROUP, {"type": "htpo"}, TOKENS],
    ),
)
