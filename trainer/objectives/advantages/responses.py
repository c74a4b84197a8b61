"""What methods that rescale whole responses share: which responses count, their entropy, scales inside a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.lazy import torch
from trainer.objectives.base import ObjectivePart, statistic
from trainer.objectives.reductions import completion_mean, completion_tokens, group_extreme, valid_of

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


def answered(batch: TokenBatch) -> TokenBatch:
    """Return the batch in which responses without a token that counts are invalid: they have no entropy to compare."""
    return batch.replace(valid=valid_of(batch) & (completion_tokens(batch) > 0))


def response_entropy(batch: TokenBatch, part: ObjectivePart) -> Tensor:
    """Return the mean entropy of each response under the step-start policy, [S], nats."""
    return completion_mean(statistic(batch, "old_entropy", part), batch)


def start_logprob(batch: TokenBatch) -> Tensor:
    """Return the log-prob of each token under the step-start policy, [N], nats."""
    return batch.logprob.detach() if batch.old_logprob is None else batch.old_logprob


def bounds(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value that counts, [] each; 0 and 0 where none does."""
    kept = values[counts]
    return (kept.amin(), kept.amax()) if kept.numel() else (values.new_zeros(()), values.new_zeros(()))


def group_scaled(values: Tensor, batch: TokenBatch, epsilon: float) -> Tensor:
    """Return (x - least of the group) / (largest - least + epsilon), [S] in [0, 1]; 0 for invalid completions."""
    least, most = (group_extreme(values, batch, largest=largest) for largest in (False, True))
    valid = valid_of(batch)
    least, most = (torch.where(valid, end, torch.zeros_like(end)) for end in (least, most))
    return torch.where(valid, (values - least) / (most - least + epsilon), torch.zeros_like(values))
