"""Likeness of responses: cosines of vectors inside a group, and which pairs are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.lazy import torch
from trainer.objectives.reductions import groups_of, valid_of

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


def unit(vectors: Tensor) -> Tensor:
    """Return the vectors [S, E] at length 1; a zero vector stays zero."""
    length = vectors.norm(dim=1, keepdim=True)
    return torch.where(length > 0, vectors / torch.where(length > 0, length, 1.0), 0.0)


def rivals(batch: TokenBatch) -> Tensor:
    """Return which pairs of completions are two different valid ones of one group, [S, S] bool."""
    dense, _ = groups_of(batch)
    valid = valid_of(batch)
    same = (dense[:, None] == dense[None, :]) & valid[:, None] & valid[None, :]
    return same & ~torch.eye(batch.sequences, dtype=torch.bool, device=dense.device)


def cosines(vectors: Tensor) -> Tensor:
    """Return the cosine of each pair of completions, [S, S]."""
    units = unit(vectors)
    return units @ units.T
