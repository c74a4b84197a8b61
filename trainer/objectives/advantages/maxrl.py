"""MaxRL: rare successes weigh as much as the likelihood gradient says."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import equal_rewards, group_mean, valid_of
from trainer.objectives.stages import Normaliser
from trainer.objectives.stock import CLIP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class MaxRl(Normaliser):
    """Maximum-likelihood advantage (MaxRL).

    (reward - mean of the group) / mean: with rewards 0 and 1 a right answer among N weighs up to N - 1, a wrong one -1.
    Groups whose mean is not positive teach nothing. Rewards must not be negative.
    """

    title: ClassVar[str] = "Maximum-likelihood advantage (MaxRL)"
    paper: ClassVar[str] = "2602.02710"
    formula: ClassVar[str] = r"A_i = \frac{r_i - \bar r}{\bar r + \epsilon}"
    type: Literal["maxrl"] = "maxrl"
    epsilon: float = setting(
        1e-6, help="Added to the mean; groups with no larger mean are left out.", gt=0, le=1, advanced=True
    )

    def normalise(self, batch: TokenBatch, step: Step) -> Tensor:
        # float64: the rounding of a float32 mean would give a group of equal rewards an advantage
        exact = batch.replace(reward=batch.reward.double())
        mean = group_mean(exact.reward, exact)
        teaches = valid_of(batch) & (mean > self.epsilon) & ~equal_rewards(batch)
        advantage = (exact.reward - mean) / (mean.clamp(min=self.epsilon) + self.epsilon)
        return torch.where(teaches, advantage, 0.0).to(batch.reward.dtype)


PARTS = (MaxRl,)
PRESETS = (
    Preset(
        name="maxrl",
        title="MaxRL",
        summary="The advantage is divided by the group's success rate instead of its std: a rare success on a hard "
        "prompt weighs as much as all failures beside it. It follows the likelihood of success and keeps pass@k; "
        "entropy falls later on easy prompts.",
        when="Rewards of 0 and 1, and hard prompts with few successes.",
        formula=MaxRl.formula,
        reference=paper("Maximum Likelihood Reinforcement Learning", "2602.02710", 2026),
        confidence="secondary",
        parts=[{"type": "maxrl"}, CLIP, TOKENS],
    ),
)
