"""TRACE: key spans of right answers learn from a teacher who has seen the solution, everything else from the reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.schedule import linear, progress
from trainer.objectives.stages import Blend
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class TokenRouting(Blend):
    """Token routing (TRACE).

    Tokens in key spans of right answers pay for the divergence from the teacher to the policy in place of the policy
    loss, on request also those in error spans of wrong answers, for the divergence the other way. The price is level
    while the run warms up and then falls linearly to zero, after which every token has the policy loss again.
    """

    title: ClassVar[str] = "Token routing"
    paper: ClassVar[str] = "2605.10194"
    formula: ClassVar[str] = (
        r"x_t = \beta_k\, \mathrm{KL}(\pi_T \Vert \pi_\theta)_t \text{ in key spans},\quad "
        r"x_t = x^{\text{GRPO}}_t \text{ elsewhere},\quad \beta_k \to 0"
    )
    type: Literal["token_routing"] = "token_routing"
    coefficient: float = setting(1.0, help="Price of a nat of divergence.", ge=0, le=100, knob="routing_coefficient")
    warmup: float = setting(0.1, help="Share of the run with the full price; after it the price falls.", ge=0, le=1)
    errors: bool = setting(False, help="Route error spans of wrong answers too.")

    def reads(self) -> frozenset[Statistic]:
        known = frozenset({"span", "teacher_kl"})
        return known | {"teacher_reverse_kl"} if self.errors else known

    def blend(self, batch: TokenBatch, step: Step, loss: Callable[[TokenBatch], Tensor]) -> Tensor:
        values = loss(batch)
        price = step.knobs["routing_coefficient"] * self.fading(progress(step.step, step.total_steps))
        step.metrics["objective/routing_price"] = price
        if price == 0:
            return values
        span = statistic(batch, "span", self)
        values = torch.where(span > 0, price * statistic(batch, "teacher_kl", self), values)
        if not self.errors:
            return values
        return torch.where(span < 0, price * statistic(batch, "teacher_reverse_kl", self), values)

    def fading(self, x: float) -> float:
        """Return the share of the price that is left at share x in [0, 1] of the run."""
        return 1.0 if x <= self.warmup else linear(1, 0, (x - self.warmup) / (1 - self.warmup))


PARTS = (TokenRouting,)
PRESETS = (
    Preset(
        name="trace",
        title="TRACE",
        summary="The same model with the solution in its prompt teaches the few tokens that decide right answers; all "
        "other tokens follow the reward, and the teacher fades out. Teaching towards a distribution keeps alternatives "
        "alive where a reward would sharpen.",
        when="Needs a teacher's pass and spans; until the trainer gives them, recorded numbers only.",
        formula=TokenRouting.formula,
        reference=paper("TRACE: token-routed distillation from a privileged teacher", "2605.10194", 2026),
        confidence="reconstructed",
        assumed="Only an abstract was at hand: a price of 1, level for the first tenth of the run and then linear to "
        "zero, and routed tokens without policy loss while the price lasts.",
        parts=[GROUP, CLIP, {"type": "token_routing"}, TOKENS],
    ),
)
