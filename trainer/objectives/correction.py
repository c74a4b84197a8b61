"""Weights for tokens that an engine drew with other log-probs than the trainer's (Yao et al. 2025; Liu et al. 2025)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

Span = Literal["off", "token", "sequence"]
Beyond = Literal["truncate", "mask"]
LARGEST = 20.0  # nats; exp stays finite in float32, and every cap lies below it


def engine_weight(
    batch: TokenBatch, engine: Tensor, *, span: Span, beyond: Beyond, floor: float, cap: float
) -> tuple[Tensor, Tensor]:
    """Return the weight of each token and whether its ratio lay outside [floor, cap], [N] each, detached.

    The ratio is exp(old_logprob - engine_logprob) of the token, or their product over the completion. Outside, it is
    cut back to the nearer end, or the weight is 0. A token without a finite engine log-prob, and every token of an
    auxiliary completion (drawn at another temperature on purpose), leaves the product alone and has weight 1; such a
    token shares its completion's weight where the span is the sequence.
    """
    old = batch.logprob.detach() if batch.old_logprob is None else batch.old_logprob
    usable = torch.isfinite(engine) & torch.isfinite(old)
    if batch.auxiliary is not None:
        usable &= ~batch.per_token(batch.auxiliary)
    gap = torch.where(usable, old - engine, torch.zeros_like(old))
    if span == "sequence":
        gap = batch.per_token(batch.per_sequence_sum(gap))
        usable = torch.ones_like(usable)  # a completion without a usable token has the ratio 1
    ratio = gap.clamp(-LARGEST, LARGEST).exp()
    outside = usable & ((ratio > cap) | (ratio < floor))
    kept = ratio.clamp(floor, cap) if beyond == "truncate" else torch.where(outside, torch.zeros_like(ratio), ratio)
    return torch.where(usable, kept, torch.ones_like(kept)), outside
