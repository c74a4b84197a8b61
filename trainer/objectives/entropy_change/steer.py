"""STEER: weigh each token by how much its update would change entropy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import counts_of
from trainer.objectives.stages import TokenWeight
from trainer.objectives.stock import CLIP_HIGHER, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

RARE = 1e-8  # probabilities are kept this far from 0 and 1, as in the authors' code
SMALLEST_SCALE = 0.02  # the exponential form never steepens beyond this largest change


class Steer(TokenWeight):
    """Entropy-change weight (STEER).

    Estimates for each token how far its update would move entropy, |A / p_old| p (1 - p) |log p + H|, and weighs the
    token less the larger that is: linearly between the smallest and largest change of the step, or exponentially. The
    denominator stays and weights are not renormalised, so one extreme token sets the scale for all.
    """

    title: ClassVar[str] = "Entropy-change weight"
    paper: ClassVar[str] = "2510.10150"
    formula: ClassVar[str] = (
        r"\Omega_t = \left|\tfrac{A_t}{p^{\text{old}}_t} p_t (1-p_t)(\log p_t + H_t)\right|,\quad "
        r"w_t = w_{\max} - \frac{\Omega_t - \Omega_{\min}}{\Omega_{\max} - \Omega_{\min}}(w_{\max} - w_{\min})"
    )
    domain: ClassVar[Domain] = "step"
    type: Literal["steer"] = "steer"
    shape: Literal["linear", "exponential"] = setting("linear", help="How the weight falls with the change.")
    weight_low: float = setting(0.8, help="Weight of the tokens that would change entropy most.", gt=0, le=1)
    weight_high: float = setting(
        1.2, help="Weight of the tokens that would change it least.", ge=0.01, le=10, show_if={"shape": "linear"}
    )
    entropy_of: Literal["old", "current"] = setting(
        "old",
        help="Whose entropy is read: the step-start policy's as in the authors' code, or the current one's.",
        advanced=True,
    )

    @model_validator(mode="after")
    def _ordered(self) -> Steer:
        if self.weight_low > self.weight_high:
            raise ValueError(f"weight_low is {self.weight_low}, above weight_high, {self.weight_high}; lower it")
        return self

    def reads(self) -> frozenset[Statistic]:
        return frozenset({"old_logprob", "old_entropy" if self.entropy_of == "old" else "entropy"})

    def reweigh(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage, counts = batch.need("advantage"), counts_of(batch)
        if not bool(counts.any()):
            return advantage
        change = self._change(batch)
        smallest = torch.where(counts, change, torch.inf).min()
        largest = torch.where(counts, change, 0).max()
        weight = self._linear(change, smallest, largest) if self.shape == "linear" else self._falling(change, largest)
        step.metrics["objective/steer_weight"] = float(weight[counts].mean())
        return torch.where(counts, advantage * weight, advantage)

    def _change(self, batch: TokenBatch) -> Tensor:
        """Return the estimated size of each token's entropy change, [N], nats times advantage."""
        entropy = statistic(batch, "old_entropy" if self.entropy_of == "old" else "entropy", self).detach()
        p = batch.logprob.detach().exp().clamp(RARE, 1 - RARE)
        old = p if batch.old_logprob is None else batch.old_logprob.exp().clamp(RARE, 1)
        change = (batch.need("advantage") / old * p * (1 - p) * (p.log() + entropy)).abs()
        return torch.where(torch.isfinite(change), change, torch.zeros_like(change))

    def _linear(self, change: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:
        if bool(largest == smallest):
            return torch.full_like(change, (self.weight_low + self.weight_high) / 2)
        share = (change - smallest) / (largest - smallest)
        weight = self.weight_high - share * (self.weight_high - self.weight_low)
        return weight.clamp(self.weight_low, self.weight_high)

    def _falling(self, change: Tensor, largest: Tensor) -> Tensor:
        rate = -math.log(self.weight_low) / largest.clamp(min=SMALLEST_SCALE)
        return (-rate * change).exp().clamp(self.weight_low, 1)


REFERENCE = paper("Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective", "2510.10150", 2025)
SURROGATE = CLIP_HIGHER | {"dual_clip": 10.0}
PARTS = (Steer,)
PRESETS = (
    Preset(
        name="steer",
        title="STEER",
        summary="Each token's update is weighed between 0.8 and 1.2 by how far it would move entropy, up or down: the "
        "tokens that would move it most weigh least. Entropy drifts more slowly in either direction.",
        when="A gentle brake with next to nothing to tune; one extreme token of a large batch flattens all weights.",
        formula=Steer.formula,
        reference=REFERENCE,
        confidence="code",
        variants="The authors' code compares within a micro-batch, here the optimiser step; it multiplies p by 1 - p "
        "once, though its own name for it says squared.",
        parts=[GROUP, {"type": "steer"}, SURROGATE, TOKENS],
    ),
    Preset(
        name="steer-exp",
        title="STEER, exponential",
        summary="STEER with weights that fall exponentially with the entropy change, from 1 down to 0.8: nothing is "
        "amplified, and the tokens that would move entropy most are held back.",
        when="As STEER, where no token should weigh more than in plain GRPO.",
        formula=r"w_t = \operatorname{clip}(e^{-k\Omega_t}, w_{\min}, 1),\quad "
        r"k = -\ln w_{\min} / \max(\Omega_{\max}, 0.02)",
        reference=REFERENCE,
        confidence="code",
        parts=[GROUP, {"type": "steer", "shape": "exponential"}, SURROGATE, TOKENS],
    ),
)
