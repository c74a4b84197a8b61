"""Lp-Reg: keep rare but sensible tokens of wrong answers from being wiped out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.common.kl_penalty import Estimator, kl_estimate
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import LOG_RATIO_LIMIT
from trainer.objectives.reductions import counts_of
from trainer.objectives.stages import Blend
from trainer.objectives.stock import GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class LowProbability(Blend):
    """Low-probability regularisation (Lp-Reg).

    Among punished tokens the share with the smallest log-probs is looked at. Those which min-p filtering of the
    step-start policy would keep, and which are less likely now than under that filtered policy, pay for their
    distance to it, and their ratio is not clipped: noise may go, sensible rare tokens stay.
    """

    title: ClassVar[str] = "Low-probability regularisation"
    paper: ClassVar[str] = "2510.03222"
    formula: ClassVar[str] = (
        r"x_t = -A_t r_t + \kappa\, k_3(\ell_t, \ell^{\text{kept}}_t)"
        r"\text{ on the } \lfloor\rho n_-\rfloor \text{ least likely punished tokens with } \ell_t < "
        r"\ell^{\text{kept}}_t"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"logprob", "kept_logprob"})
    type: Literal["low_probability"] = "low_probability"
    min_p: float = setting(
        0.02, help="Tokens below this multiple of the largest probability count as noise.", gt=0, le=1
    )
    share_negative: float = setting(
        0.01,
        help="Share of the punished tokens that is looked at, the least likely ones; fewer than two are none.",
        ge=0,
        le=1,
    )
    share_positive: float = setting(0.0, help="The same of the rewarded tokens.", ge=0, le=1, advanced=True)
    coefficient: float = setting(
        1.0, help="Price of a nat of divergence.", ge=0, le=100, knob="low_probability_coefficient"
    )
    estimator: Estimator = setting("k3", help="Estimate of the divergence from the sampled token.", advanced=True)

    def options(self, knobs: dict[str, float]) -> dict[str, Any]:
        return {"min_p": self.min_p}

    def blend(self, batch: TokenBatch, step: Step, loss: Callable[[TokenBatch], Tensor]) -> Tensor:
        target, counts = statistic(batch, "kept_logprob", self), counts_of(batch)
        advantage, logprob = batch.need("advantage"), batch.logprob.detach()
        rare = least(logprob, counts & (advantage < 0), self.share_negative)
        rare |= least(logprob, counts & (advantage > 0), self.share_positive)
        chosen = rare & (logprob < target)
        step.metrics["objective/low_probability_share"] = float(chosen.sum() / counts.sum().clamp(min=1))
        beyond = torch.full_like(logprob, math.exp(LOG_RATIO_LIMIT))  # no ratio gets there, nor below 0
        free = loss(batch.replace(clip_low=torch.ones_like(logprob), clip_high=beyond))
        price = step.knobs["low_probability_coefficient"] * kl_estimate(batch.logprob, target, self.estimator)
        return torch.where(chosen, free + price, loss(batch))


def least(values: Tensor, among: Tensor, share: float) -> Tensor:
    """Return which entries are the smallest share of those among, [N] bool; ties stay, and fewer than two are none."""
    number = int(share * int(among.sum()))
    if number < 2:
        return torch.zeros_like(among)
    threshold = values[among].kthvalue(number).values
    return among & (values <= threshold)


PARTS = (LowProbability,)
PRESETS = (
    Preset(
        name="lp-reg",
        title="Lp-Reg",
        summary="Wrong answers push their rare tokens towards zero, among them the sparks of other ways to reason. The "
        "rarest hundredth of them is held near the policy cut to its plausible tokens, unless the cut calls the token "
        "noise. Exploration lasts longer, and entropy falls later.",
        when="Long training with many wrong answers. Two tokens at least must be selected, so steps of a few hundred "
        "punished tokens need a larger share.",
        formula=LowProbability.formula,
        reference=paper("Low-probability Tokens Sustain Exploration in RLVR", "2510.03222", 2025),
        confidence="code",
        variants="The authors' code selects within a micro-batch, here the optimiser step; its settings are named "
        "percent and hold shares (0.01 for 14B, 0.005 for 32B).",
        parts=[
            GROUP,
            {"type": "ppo_clip", "clip_low": 1.0, "clip_high": 9.0, "dual_clip": 0.0},
            {"type": "low_probability"},
            TOKENS,
        ],
    ),
)
