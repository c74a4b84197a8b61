"""Agentic AEPO (entropy-balanced policy optimisation): uncertain tokens weigh more and survive the upper clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, ObjectivePart, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import RatioSurrogate, clip_of, dual, log_ratio, report_clip, unit
from trainer.objectives.reductions import counts_of, step_mean, step_std
from trainer.objectives.stages import TokenWeight
from trainer.objectives.stock import GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


def entropy_score(batch: TokenBatch, part: ObjectivePart) -> Tensor:
    """Return (entropy - mean) / std over the step's tokens, [N], unbiased; a std of 0 counts as 1, masked tokens 0."""
    entropy, counts = statistic(batch, "entropy", part).detach(), counts_of(batch)
    std = step_std(entropy, counts, unbiased=True)
    score = (entropy - step_mean(entropy, counts)) / torch.where(std > 0, std, torch.ones_like(std))
    return torch.where(counts, score, torch.zeros_like(score))


class EntropyScoreWeight(TokenWeight):
    """Entropy-scored advantage (agentic AEPO).

    A(1 + a z) with z the standardised entropy of the token in the step.
    """

    title: ClassVar[str] = "Entropy-scored advantage"
    paper: ClassVar[str] = "2510.14545"
    formula: ClassVar[str] = r"A_t \to A_t\,\bigl(1 + a\,z(H_t)\bigr)"
    domain: ClassVar[Domain] = "step"
    may_flip: ClassVar[bool] = True
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy"})
    type: Literal["entropy_score_weight"] = "entropy_score_weight"
    strength: float = setting(0.2, help="a: change of the advantage for each std of entropy.", ge=-1, le=1)

    def reweigh(self, batch: TokenBatch, step: Step) -> Tensor:
        return batch.need("advantage") * (1 + self.strength * entropy_score(batch, self))


class EntropyKeptClip(RatioSurrogate):
    """Clip that selected tokens survive (agentic AEPO).

    PPO's clip, but rewarded tokens of the selected entropy keep the gradient they had at the upper end:
    high, above the step's mean entropy, as described; low, at or below it, as a third party's code has it; or all.
    """

    title: ClassVar[str] = "Entropy-kept upper clip"
    paper: ClassVar[str] = "2510.14545"
    formula: ClassVar[str] = (
        r"x_t = \max\bigl(-A_t r_t, -A_t \operatorname{clip}(r_t, 1-\epsilon_-, (1+\epsilon_+) u_t)\bigr),\quad "
        r" u_t = \frac{r_t}{\operatorname{sg}(r_t)}\ \text{if}\ z(H_t) > 0,\ \text{else}\ 1"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob", "entropy"})
    type: Literal["entropy_kept_clip"] = "entropy_kept_clip"
    clip_low: float = setting(0.2, help="The ratio may fall this far below 1.", ge=0, le=1, knob="clip_low")
    clip_high: float = setting(0.28, help="The ratio may rise this far above 1.", ge=0, le=100, knob="clip_high")
    dual_clip: float = setting(
        3.0,
        help="Bound on the ratio of tokens with negative advantage; 0 turns it off.",
        ge=0,
        le=1000,
        advanced=True,
    )
    select: Literal["high", "low", "all"] = setting(
        "high", help="Which tokens keep a gradient beyond the upper end: of high entropy, of low entropy, or all."
    )

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage, ratio = batch.need("advantage"), log_ratio(batch).exp()
        below, above = clip_of(batch, step)
        low, high = 1 - below, 1 + above
        report_clip(batch, step, ratio, low, high)
        end = ratio.clamp(low, high)
        end = torch.where((ratio > high) & self._selected(batch), high * unit(batch), end)
        values = torch.maximum(-advantage * ratio, -advantage * end)
        return self.corrected(dual(values, advantage, self.dual_clip), batch, step)

    def _selected(self, batch: TokenBatch) -> Tensor:
        score = entropy_score(batch, self)
        if self.select == "all":
            return torch.ones_like(score, dtype=torch.bool)
        return score > 0 if self.select == "high" else score <= 0


PARTS = (EntropyScoreWeight, EntropyKeptClip)
PRESETS = (
    Preset(
        name="agentic-aepo",
        title="Agentic AEPO",
        summary="Uncertain tokens get more advantage, and rewarded ones among them keep a bounded gradient beyond the "
        "upper clip, where PPO stops them. Both keep entropy up at the forks. The paper's balanced branching of tool "
        "calls is not part of it: every prompt gets its completions from the start.",
        when="Agents with tools, or long answers, with several minibatches per step.",
        formula=EntropyScoreWeight.formula + r",\quad " + EntropyKeptClip.formula,
        reference=paper("Agentic Entropy-Balanced Policy Optimization", "2510.14545", 2025),
        confidence="secondary",
        variants="The one implementation seen, a third party's, keeps the gradient of low-entropy tokens and drops "
        "that of high-entropy ones, the reverse of the description: select = low gives it.",
        parts=[GROUP, {"type": "entropy_score_weight"}, {"type": "entropy_kept_clip"}, TOKENS],
    ),
)
