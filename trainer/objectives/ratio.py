"""What surrogates share: the importance ratio and the correction for a sampler that disagrees with the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.lazy import torch
from trainer.objectives.base import Statistic, Step
from trainer.objectives.correction import Beyond, Span, engine_weight
from trainer.objectives.stages import Surrogate
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

CORRECTED = {"correction": ["token", "sequence"]}
LOG_RATIO_LIMIT = 20.0  # nats; exp stays finite in float32 and no sane update comes near it


def log_ratio(batch: TokenBatch) -> Tensor:
    """Return logprob - old_logprob, [N], clamped; without old_logprob the policy is the one that sampled."""
    old = batch.logprob.detach() if batch.old_logprob is None else batch.old_logprob
    return (batch.logprob - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def clip_of(batch: TokenBatch, step: Step) -> tuple[Tensor, Tensor]:
    """Return how far each token's ratio may fall below and rise above 1, [N] each; infinite where nothing clips."""
    low, high = step.knobs.get("clip_low", torch.inf), step.knobs.get("clip_high", torch.inf)
    everywhere = torch.ones_like(batch.logprob.detach())
    return (
        everywhere * low if batch.clip_low is None else batch.clip_low,
        everywhere * high if batch.clip_high is None else batch.clip_high,
    )


def unit(batch: TokenBatch) -> Tensor:
    """Return 1 for each token, [N], whose derivative by the log-prob is 1: values kept, gradients let through."""
    return (batch.logprob - batch.logprob.detach()).exp()


def clipped(advantage: Tensor, ratio: Tensor, low: Tensor, high: Tensor, dual_clip: float = 0.0) -> Tensor:
    """Return max(-A r, -A clip(r, low, high)), [N]; where A < 0 at most -A `dual_clip`, unless that is 0."""
    values = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(low, high))
    return dual(values, advantage, dual_clip)


def dual(values: Tensor, advantage: Tensor, bound: float) -> Tensor:
    """Return the token losses, [N], at most -A `bound` where A < 0; unchanged where the bound is 0."""
    if not bound:
        return values
    return torch.where(advantage < 0, torch.minimum(values, -advantage * bound), values)


def report_clip(batch: TokenBatch, step: Step, ratio: Tensor, low: Tensor, high: Tensor) -> None:
    """Write which shares of the tokens have a ratio beyond `high` with A > 0, or below `low` with A < 0."""
    advantage, ratio = batch.need("advantage"), ratio.detach()
    mask = torch.ones_like(ratio) if batch.mask is None else batch.mask
    total = mask.sum().clamp(min=1)
    above = ((advantage > 0) & (ratio > high)) * mask
    below = ((advantage < 0) & (ratio < low)) * mask
    step.metrics["objective/clip_high_share"] = float(above.sum() / total)
    step.metrics["objective/clip_low_share"] = float(below.sum() / total)
    step.metrics["objective/clip_share"] = float((above + below).sum() / total)


class RatioSurrogate(Surrogate):
    """A surrogate of the ratio, with importance weights between engine and trainer as a property.

    Every token's loss is multiplied by its weight, whatever the surrogate. Both log-probs are those of the raw policy
    at the training temperature: what modifiers and truncation did to a draw is not weighed.
    """

    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob"})

    correction: Span = setting(
        "off",
        help="Correct for engine log-probs that differ from the trainer's: weigh by the ratio of each token, or of the "
        "whole completion.",
        advanced=True,
    )
    correction_mode: Beyond = setting(
        "truncate",
        help="A ratio beyond the cap is cut back to it, or its tokens are masked out. TRL masks completions above 3.",
        advanced=True,
        show_if=CORRECTED,
    )
    correction_cap: float = setting(
        2.0, help="Largest ratio the engine correction lets through.", ge=1, le=100, advanced=True, show_if=CORRECTED
    )
    correction_floor: float = setting(
        0.0, help="Smallest ratio the engine correction lets through.", ge=0, le=1, advanced=True, show_if=CORRECTED
    )

    def reads(self) -> frozenset[Statistic]:
        return self.needs if self.correction == "off" else self.needs | {"engine_logprob"}

    def corrected(self, values: Tensor, batch: TokenBatch, step: Step) -> Tensor:
        """Return the token losses times the engine correction, [N]."""
        if self.correction == "off" or batch.engine_logprob is None:
            return values
        weight, outside = engine_weight(
            batch,
            batch.engine_logprob,
            span=self.correction,
            beyond=self.correction_mode,
            floor=self.correction_floor,
            cap=self.correction_cap,
        )
        mask = torch.ones_like(weight) if batch.mask is None else batch.mask
        total = mask.sum().clamp(min=1)
        step.metrics["objective/engine_weight"] = float((weight * mask).sum() / total)
        step.metrics["objective/engine_capped"] = float((outside * mask).sum() / total)
        return values * weight
