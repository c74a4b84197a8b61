"""The covariance of advantage and log-prob: the estimate of entropy change behind Clip-Cov and KL-Cov."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


def covariance(batch: TokenBatch) -> tuple[Tensor, Tensor, int]:
    """Return (A - mean A)(l - mean l) of each token, [N]; which tokens count, [N] bool; their number.

    Means are over the tokens of the whole optimiser step, not of a micro-batch as in the authors' code (2505.22617).
    """
    assert batch.advantage is not None
    assert batch.mask is not None
    counts = batch.mask > 0
    number = int(counts.sum())
    advantage, logprob = batch.advantage * counts, torch.where(counts, batch.logprob.detach(), 0)
    mean_advantage, mean_logprob = advantage.sum() / max(number, 1), logprob.sum() / max(number, 1)
    return (advantage - mean_advantage) * (logprob - mean_logprob), counts, number


def budget(share: float, tokens: int) -> int:
    """Return how many tokens a share of them is: at least one."""
    return max(1, int(tokens * share))
