"""PEAR: the reward pays for entropy in the thinking beyond that of the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_sum
from trainer.objectives.stages import RewardShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

FORMULA = r"r = \min\!\left(1,\; s - \max(0,\; \bar H_{\text{think}} - \alpha \bar H_{\text{answer}})\right)"


class PEARReward(RewardShaper):
    """Phase entropy penalty (PEAR).

    A right answer loses max(0, mean entropy of the thinking - alpha * mean entropy of what follows it) and gets at most
    1; a wrong one keeps its reward. The delimiter belongs to neither phase; without one everything is thinking.
    """

    title: ClassVar[str] = "Phase entropy penalty (PEAR)"
    paper: ClassVar[str] = "2510.08026"
    formula: ClassVar[str] = FORMULA
    domain: ClassVar[Domain] = "completion"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy", "think_end", "correct"})
    type: Literal["pear"] = "pear"
    alpha: float = setting(1.0, help="How much entropy of the answer offsets that of the thinking.", ge=0, le=100)
    delimiter: str = setting("</think>", help="Text that closes the thinking.", min_length=1, max_length=100)

    def options(self, knobs: dict[str, float]) -> dict[str, Any]:
        return {"delimiter": self.delimiter}

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        entropy = statistic(batch, "old_entropy", self)
        end = batch.per_token(statistic(batch, "think_end", self))
        thinking = (end < 0) | (batch.position < end)
        answer = (end >= 0) & (batch.position > end)
        before, after = (self._mean(entropy, phase, batch) for phase in (thinking, answer))
        penalty = (before - self.alpha * after).clamp(min=0)
        right = statistic(batch, "correct", self) > 0.5
        step.metrics["objective/pear_penalty"] = float(penalty[right].mean()) if bool(right.any()) else 0.0
        return torch.where(right, (batch.reward - penalty).clamp(max=1), batch.reward)

    @staticmethod
    def _mean(entropy: Tensor, phase: Tensor, batch: TokenBatch) -> Tensor:
        """Return the mean entropy of a phase's tokens that count, [S]; 0 where it has none."""
        number = completion_sum(phase.to(entropy.dtype), batch).clamp(min=1)
        return completion_sum(torch.where(phase, entropy, torch.zeros_like(entropy)), batch) / number


PARTS = (PEARReward,)
PRESETS = (
    Preset(
        name="pear",
        title="PEAR",
        summary="A right answer loses as much reward as its thinking is more uncertain than what follows it. Entropy "
        "falls during the thinking and so does its length, without a length target.",
        when="Models that think in a marked block and think too long.",
        formula=FORMULA,
        reference=paper("PEAR: Phase Entropy Aware Reward for Efficient Reasoning", "2510.08026", 2025),
        confidence="secondary",
        parts=[{"type": "pear"}, GROUP, CLIP, TOKENS],
    ),
)
