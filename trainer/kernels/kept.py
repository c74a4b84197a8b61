"""Kept: logits of the forward pass that the backward pass need not compute again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.kernels.task import Task


@dataclass(frozen=True)
class Kept:
    """hidden @ weight.T of the first rows, [k, V]: as it is, or narrow and less a row's `centre`.

    In two bytes the distance from the likeliest token loses 2^-9 of itself, so the tokens that carry the mass are the
    exact ones; the logits themselves would lose 2^-9 of theirs, thirty times as much (and far more under an offset).
    """

    logits: Tensor  # [k, V]
    centre: Tensor | None  # [k]

    @classmethod
    def allocate(cls, count: int, vocabulary: int, like: Tensor, task: Task) -> Kept | None:
        """Return memory for as many rows as fit the task's budget, or None where that is no row.

        An invariant task computes rows that are not there, so it keeps none.
        """
        dtype = task.kept_dtype or like.dtype
        rows = 0 if task.invariant else min(count, task.keep_bytes // (vocabulary * dtype.itemsize))
        if not rows:
            return None
        logits = like.new_empty(rows, vocabulary, dtype=dtype)
        return cls(logits, None if dtype == like.dtype else like.new_empty(rows))

    def __len__(self) -> int:
        return len(self.logits)

    def memory(self, rows: slice) -> Tensor | None:
        """Return where the logits of these rows are to be computed, or None where they have to be stored later."""
        return self.logits[rows] if self.centre is None else None

    def store(self, rows: slice, logits: Tensor, argmax: Tensor) -> None:
        """Keep the logits of these rows; nothing to do where they were computed in place."""
        if self.centre is None:
            return
        self.centre[rows] = logits.gather(1, argmax[:, None]).squeeze(1)
        torch.sub(logits, self.centre[rows, None], out=self.logits[rows])

    def load_(self, out: Tensor, rows: Tensor, columns: slice) -> Tensor:
        """Write columns of some rows into `out`, as wide as they were."""
        found = self.logits[:, columns].index_select(0, rows)
        if self.centre is None:
            return out.copy_(found)
        return torch.add(found, self.centre[rows, None], out=out)
