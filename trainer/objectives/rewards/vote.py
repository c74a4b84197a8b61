"""Votes: how many completions of a group give the same answer, and which answer most of them give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.lazy import torch
from trainer.objectives.reductions import group_extreme, groups_of, valid_of

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


def votes(answer: Tensor, batch: TokenBatch) -> Tensor:
    """Return how many valid completions of its group share each completion's answer, [S]; 0 for invalid ones.

    Completions without an answer (-1) share one: none.
    """
    dense, _ = groups_of(batch)
    valid = valid_of(batch)
    cluster, inverse = torch.unique(torch.stack([dense, answer.long()], 1), dim=0, return_inverse=True)
    counts = torch.zeros(cluster.shape[0], dtype=torch.long, device=answer.device)
    counts = counts.index_add(0, inverse, valid.long())
    return torch.where(valid, counts[inverse], 0)


def majority(answer: Tensor, batch: TokenBatch) -> Tensor:
    """Return which completions give their group's most frequent answer, [S] bool.

    No answer is no vote. Among answers with equally many votes the lowest number wins: the one that came first.
    """
    answered = valid_of(batch) & (answer >= 0)
    count = torch.where(answered, votes(answer, batch), -1).to(answer.dtype)
    leading = answered & (count == group_extreme(count, batch, largest=True))
    chosen = group_extreme(torch.where(leading, answer, torch.inf), batch, largest=False)
    return leading & (answer == chosen)
