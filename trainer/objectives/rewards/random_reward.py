"""Spurious rewards: controls that say how much of a gain needs no right answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.rewards.draws import draws
from trainer.objectives.rewards.replaced import others
from trainer.objectives.stages import RewardShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

FORMULA = r"r_i \sim \operatorname{Bernoulli}(\gamma)"


class SpuriousReward(RewardShaper):
    """Spurious reward.

    The task's reward is replaced by one that knows nothing of it: a coin (random), 1 for any answer (answered), or 1
    for a wrong answer (wrong). The coin depends on the run's seed, the step and the completion alone.
    """

    title: ClassVar[str] = "Spurious reward"
    paper: ClassVar[str] = "2506.10947"
    formula: ClassVar[str] = FORMULA
    incompatible: ClassVar[frozenset[str]] = others("spurious_reward")
    type: Literal["spurious_reward"] = "spurious_reward"
    rule: Literal["random", "answered", "wrong"] = setting("random", help="What is rewarded.")
    chance: float = setting(0.5, help="Chance of a reward of 1.", ge=0, le=1, show_if={"rule": "random"})

    def reads(self) -> frozenset[Statistic]:
        known = {"random": {"trajectory"}, "answered": {"answer"}, "wrong": {"answer", "correct"}}
        return frozenset(known[self.rule])

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        if self.rule == "random":
            rewarded = draws(step, statistic(batch, "trajectory", self), purpose=2) < self.chance
        else:
            rewarded = statistic(batch, "answer", self) >= 0
        if self.rule == "wrong":
            rewarded = rewarded & (statistic(batch, "correct", self) < 0.5)
        return rewarded.to(batch.reward.dtype)


PARTS = (SpuriousReward,)
PRESETS = (
    Preset(
        name="random-reward",
        title="Random reward",
        summary="A control: the reward is a coin, drawn for each completion. On average nothing pushes entropy; what "
        "still moves comes from clipping and the optimiser, and that mostly sharpens the policy.",
        when="Beside any method whose gain may be sharpening. The rules answered and wrong are further controls.",
        formula=FORMULA,
        reference=paper("Spurious Rewards: Rethinking Training Signals in RLVR", "2506.10947", 2025),
        confidence="paper",
        parts=[{"type": "spurious_reward"}, GROUP, CLIP, TOKENS],
    ),
)
