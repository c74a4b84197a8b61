"""Two-branch weights: tokens on one side count 1 + balance, those on the other 1 - balance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Statistic, Step
from trainer.objectives.entropy_change.first_order import CHANGE_NEEDS, change
from trainer.objectives.preset import Preset, Reference
from trainer.objectives.stages import TokenWeight
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class PolarityBalance(TokenWeight):
    """Balance of entropy-raising and entropy-lowering tokens.

    A token whose update raises entropy at its own position, to first order and exactly for a softmax, counts
    1 + balance; one that lowers it counts 1 - balance. 0 is plain policy gradient, 1 learns only what raises entropy.
    """

    title: ClassVar[str] = "Polarity balance"
    formula: ClassVar[str] = r"w_t = 1 + \kappa\,\mathrm{sign}\bigl(-A_t (S_t - N_t)\bigr)"
    needs: ClassVar[frozenset[Statistic]] = CHANGE_NEEDS
    type: Literal["polarity_balance"] = "polarity_balance"
    balance: float = setting(
        0.0,
        help="Extra weight of tokens that raise entropy, taken from those that lower it; negative the other way.",
        ge=-1,
        le=1,
        knob="polarity_balance",
    )

    def reweigh(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage = batch.need("advantage")
        return advantage * (1 + step.knobs["polarity_balance"] * change(batch, advantage).sign())


class SignBalance(TokenWeight):
    """Balance of negative and positive advantages.

    Tokens with a negative advantage count 1 + balance, those with a positive one 1 - balance. Which of them raises
    entropy depends on the policy, so a controller has to measure it.
    """

    title: ClassVar[str] = "Sign balance"
    formula: ClassVar[str] = r"w_t = 1 - \sigma\,\mathrm{sign}(A_t)"
    type: Literal["sign_balance"] = "sign_balance"
    balance: float = setting(
        0.0,
        help="Extra weight of negative advantages, taken from positive ones; negative the other way.",
        ge=-1,
        le=1,
        knob="sign_balance",
    )

    def reweigh(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage = batch.need("advantage")
        return advantage * (1 - step.knobs["sign_balance"] * advantage.sign())


PARTS = (PolarityBalance, SignBalance)
PRESETS = (
    Preset(
        name="entropy-target-polarity",
        title="Target entropy by polarity",
        summary="The thermostat without an entropy term: tokens whose update raises entropy at their own position "
        "count more, and those that lower it less, as much as the target asks for.",
        when="As target entropy, where the policy should move only along its rewards.",
        reference=Reference(title="Isentrope's own controller; see docs/objectives.md"),
        confidence="own",
        parts=[GROUP, {"type": "polarity_balance"}, CLIP, TOKENS, {"type": "thermostat", "actuator": "polarity"}],
    ),
)
