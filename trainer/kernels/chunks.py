"""How much of the logits exists at once: rows of the whole vocabulary, or slices of it, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.budgets import CHUNK_BYTES, CHUNK_ROWS, CHUNK_SHARE

TILE = 16  # rows that matrix products like to come in
INVARIANT_ROWS = 128  # rows of every product where a row's result must not depend on its neighbours


def chunk_bytes_of(device: torch.device, row_bytes: int = 0) -> int:
    """Return the bytes of logits, `row_bytes` each row, that may exist at once on a device.

    On CUDA a sixteenth of its memory, not of what happens to be free: rounding would depend on the moment. Only where
    that does not fit at all is it halved until it does.
    """
    if device.type != "cuda":
        return max(CHUNK_BYTES, CHUNK_ROWS * row_bytes)
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    budget = total // CHUNK_SHARE
    while budget > free // 2 and budget > CHUNK_BYTES:
        budget //= 2
    return budget


def parts(count: int, size: int, *, start: int = 0) -> Iterator[slice]:
    """Yield slices of `size` that cover [start, count), the last one shorter."""
    for first in range(start, count, size):
        yield slice(first, min(first + size, count))


def fitting(budget: int, bytes_each: int) -> int:
    """Return how many of something fit a budget of bytes; at least one."""
    return max(1, budget // max(1, bytes_each))


def even(count: int, largest: int) -> int:
    """Return a chunk size, at most `largest`, that leaves no small remainder: each chunk rereads the whole weight."""
    if largest >= TILE:
        largest -= largest % TILE
    chunks = -(-count // largest)
    size = -(-count // max(1, chunks))
    return max(1, min(largest, size + -size % TILE))


class Buffer:
    """Memory that chunk after chunk is computed in: fresh pages cost more than what is written to them."""

    largest = 0  # bytes of logits that ever existed at once

    def __init__(self, like: Tensor) -> None:
        self.memory = like.new_empty(0)

    def of(self, rows: int, columns: int) -> Tensor:
        """Return [rows, columns] of it, contiguous, holding anything."""
        if self.memory.numel() < rows * columns:
            self.memory = self.memory.new_empty(rows * columns)
            Buffer.largest = max(Buffer.largest, self.memory.nbytes)
        return self.memory[: rows * columns].view(rows, columns)
