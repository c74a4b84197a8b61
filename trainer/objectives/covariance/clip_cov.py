"""Clip-Cov: take the gradient from a few tokens whose update would cost the most entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step
from trainer.objectives.covariance.estimate import budget, covariance
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import clip_of, log_ratio
from trainer.objectives.stages import TokenMask
from trainer.objectives.stock import GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class ClipCov(TokenMask):
    """Clip-Cov.

    Of the tokens whose covariance of advantage and log-prob lies between the bounds, a random few get no gradient; the
    denominator stays. Tokens that the ratio clip already stopped are not drawn. The draw repeats with the run's seed.
    """

    title: ClassVar[str] = "Clip-Cov"
    paper: ClassVar[str] = "2505.22617"
    formula: ClassVar[str] = (
        r"c_t = (A_t - \bar A)(\ell_t - \bar\ell),\quad g_t = 0 \text{ on } \max(1, \lfloor\rho n\rfloor)"
        r"\text{ random tokens with } c_{\min} < c_t < c_{\max}"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob"})
    incompatible: ClassVar[frozenset[str]] = frozenset({"kl_cov"})
    type: Literal["clip_cov"] = "clip_cov"
    share: float = setting(2e-4, help="Share of all tokens to draw, at least one token.", gt=0, le=1)
    lower: float = setting(1.0, help="Tokens at or below this covariance are never drawn.", ge=-1000, le=1000)
    upper: float = setting(5.0, help="Tokens at or above this covariance are never drawn.", ge=-1000, le=1000)

    @model_validator(mode="after")
    def _ordered(self) -> ClipCov:
        if self.lower >= self.upper:
            raise ValueError(f"lower is {self.lower}, not below upper, {self.upper}; no token could be drawn")
        return self

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        values, counts, number = covariance(batch)
        eligible = counts & (values > self.lower) & (values < self.upper) & ~_ratio_clipped(batch, step)
        chosen = torch.nonzero(eligible).squeeze(1)
        size = budget(self.share, number)
        step.metrics["objective/clip_cov_eligible_share"] = chosen.shape[0] / max(number, 1)
        if chosen.shape[0] > size:
            # on the CPU whatever the device: the same tokens are drawn wherever the run continues
            dice = torch.Generator().manual_seed(hash((step.seed, step.step, step.minibatch)) % 2**63)
            chosen = chosen[torch.randperm(chosen.shape[0], generator=dice)[:size].to(chosen.device)]
        return torch.ones_like(counts).index_fill(0, chosen, False)

    def semantics(self) -> Literal["drop", "detach"]:
        return "detach"


def _ratio_clipped(batch: TokenBatch, step: Step) -> Tensor:
    """Return which tokens the surrogate's ratio clip has stopped, [N] bool; none where the surrogate has no clip."""
    advantage, ratio = batch.need("advantage"), log_ratio(batch).detach().exp()
    low, high = clip_of(batch, step)
    clipped = ratio.clamp(1 - low, 1 + high)
    return -advantage * clipped > -advantage * ratio


PARTS = (ClipCov,)
PRESETS = (
    Preset(
        name="clip-cov",
        title="Clip-Cov",
        summary="Entropy falls most through tokens that are both likely and rewarded: their advantage and log-prob "
        "vary together. A random few of them get no gradient.",
        when="Long completions with thousands of tokens per step; raise the share for small batches.",
        formula=ClipCov.formula,
        reference=paper(
            "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models", "2505.22617", 2025
        ),
        confidence="code",
        parts=[
            GROUP,
            {"type": "clip_cov"},
            {"type": "ppo_clip", "clip_low": 1.0, "clip_high": 1.0, "dual_clip": 0.0},
            TOKENS,
        ],
    ),
)
