"""EntroPIC: a PI controller weighs positive against negative completions to hold entropy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Observation, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import counts_of, sequence_advantage, step_mean, valid_of
from trainer.objectives.stages import Controller, Normaliser, SequenceMultiplier
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

FORMULA = r"""A_i \leftarrow (1 \pm \alpha_k) A_i, \quad
 \alpha_k = (H_k - H^\ast) + 0.01 \sum_{j<k} (H_j - H^\ast)"""


class EntropicWeight(SequenceMultiplier):
    """Weight of positives against negatives (EntroPIC).

    Completions with a positive advantage are multiplied by 1 + alpha, those with a negative one by 1 - alpha. alpha is
    the distance of the batch's entropy from its target plus what a controller has added up: above the target positive
    ones weigh more, which lowers entropy. Without a limit an alpha beyond 1 turns the negative ones round.
    """

    title: ClassVar[str] = "Positives against negatives (EntroPIC)"
    paper: ClassVar[str] = "2511.15248"
    formula: ClassVar[str] = FORMULA
    domain: ClassVar[Domain] = "history"
    may_flip: ClassVar[bool] = True
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy"})
    type: Literal["entropic_weight"] = "entropic_weight"
    target: float = setting(0.5, help="Entropy to hold.", unit="nats", ge=0, le=20, knob="entropy_target")
    gain: float = setting(1.0, help="alpha per nat of this step's distance.", ge=0, le=100)
    integral: float = setting(
        0.0,
        help="What the controller has added up, at the start.",
        ge=-100,
        le=100,
        advanced=True,
        knob="entropic_integral",
    )
    limit: float = setting(0.0, help="Largest size of alpha; 0 sets none.", ge=0, le=1)

    def multiply(self, batch: TokenBatch, step: Step) -> Tensor:
        entropy = float(step_mean(statistic(batch, "old_entropy", self), counts_of(batch)))
        alpha = step.knobs["entropic_integral"] + self.gain * (entropy - step.knobs["entropy_target"])
        if self.limit:
            alpha = min(max(alpha, -self.limit), self.limit)
        step.metrics["objective/entropic_alpha"] = alpha
        return 1 + alpha * sequence_advantage(batch).sign()

    def band(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float]:
        value = knobs.get("entropy_target", self.target)
        return value, value

    def course(self, x: float) -> tuple[float, float]:
        return self.target, self.target


class Entropic(Controller):
    """Integral of the distance from the target (EntroPIC).

    After each step a hundredth of the distance of entropy from its target is added to what the weights start from.
    """

    title: ClassVar[str] = "Integral (EntroPIC)"
    paper: ClassVar[str] = "2511.15248"
    formula: ClassVar[str] = r"I_{k+1} = I_k + 0.01\, (H_k - H^\ast)"
    domain: ClassVar[Domain] = "history"
    requires: ClassVar[frozenset[str]] = frozenset({"entropic_weight"})
    moves: ClassVar[frozenset[str]] = frozenset({"entropic_integral"})
    type: Literal["entropic"] = "entropic"
    rate: float = setting(0.01, help="Share of the distance that is added in a step.", ge=0, le=1)

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        if not math.isfinite(seen.entropy):
            return state, {}
        return state, {
            "entropic_integral": knobs["entropic_integral"] + self.rate * (seen.entropy - knobs["entropy_target"])
        }


class RawReward(Normaliser):
    """The reward as the advantage.

    Nothing is subtracted and nothing divided by; meant for rewards of 1 and -1.
    """

    title: ClassVar[str] = "Raw reward"
    formula: ClassVar[str] = "A_i = r_i"
    domain: ClassVar[Domain] = "completion"
    type: Literal["raw_reward"] = "raw_reward"

    def normalise(self, batch: TokenBatch, step: Step) -> Tensor:
        return torch.where(valid_of(batch), batch.reward, torch.zeros_like(batch.reward))


PARTS = (EntropicWeight, Entropic, RawReward)
PRESETS = (
    Preset(
        name="entropic",
        title="EntroPIC",
        summary="Positive completions weigh more while entropy is above its target, negative ones while it is below; a "
        "proportional and a slow integral part set by how much. Holds entropy through what is learnt from, without "
        "an entropy term in the loss.",
        when="Groups with right and wrong answers in most steps.",
        formula=FORMULA,
        reference=paper(
            "EntroPIC: Towards Stable Long-Term Training of LLMs via Entropy Stabilization with Proportional-Integral "
            "Control",
            "2511.15248",
            2025,
        ),
        confidence="secondary",
        variants="This is the form in Entrocraft's repository, whole completions; the paper also looks at the tokens' "
        "probabilities. That code takes raw rewards of 1 and -1 as advantages: raw_reward in place of group_norm.",
        parts=[GROUP, {"type": "entropic_weight"}, CLIP, TOKENS, {"type": "entropic"}],
    ),
)
