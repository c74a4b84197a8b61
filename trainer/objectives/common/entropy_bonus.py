"""The entropy bonus: exact entropy, differentiable, times a coefficient that people and controllers move."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Statistic, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import Regulariser
from trainer.objectives.stock import BONUS, CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class EntropyBonus(Regulariser):
    """Entropy bonus.

    Subtracts coefficient times the token mean of the exact entropy from the loss. A fixed coefficient slows the fall of
    entropy but does not hold it; a negative one lowers entropy.
    """

    title: ClassVar[str] = "Entropy bonus"
    paper: ClassVar[str] = "1602.01783"
    formula: ClassVar[str] = r"L \mathrel{-}= c\,\frac{1}{n} \sum_t H_t"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy", "entropy_grad"})
    blind: ClassVar[bool] = True
    type: Literal["entropy_bonus"] = "entropy_bonus"
    coefficient: float = setting(
        0.0,
        help="Weight of the entropy in the loss; positive raises entropy, negative lowers it.",
        ge=-1,
        le=1,
        knob="entropy_coefficient",
    )

    def regularise(self, batch: TokenBatch, step: Step) -> Tensor:
        assert batch.mask is not None
        # entropy_enabled is a controller's switch (Skywork): the coefficient keeps moving while the bonus rests
        coefficient = step.knobs["entropy_coefficient"] * step.knobs.get("entropy_enabled", 1.0)
        step.metrics["objective/entropy_coefficient"] = coefficient
        if batch.entropy is None or coefficient == 0:
            return batch.logprob.new_zeros(())
        return -coefficient * (batch.entropy * batch.mask).sum() / batch.mask.sum().clamp(min=1)


PARTS = (EntropyBonus,)
PRESETS = (
    Preset(
        name="entropy-bonus",
        title="Entropy bonus",
        summary="GRPO plus a fixed price on lost entropy, exact and differentiable. It slows the fall of entropy "
        "but holds it nowhere; too large a coefficient drives the policy to noise.",
        when="A first try against collapse; steer the coefficient while the run is alive.",
        formula=EntropyBonus.formula,
        reference=paper("Asynchronous Methods for Deep Reinforcement Learning", "1602.01783", 2016),
        confidence="code",
        parts=[GROUP, CLIP, BONUS | {"coefficient": 0.01}, TOKENS],
    ),
)
