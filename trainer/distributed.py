"""World: the processes of one run and the few things they say to each other. One process needs no torch.distributed.

Where every process holds all weights, gradients are summed once per update (the loss is already a loss of the whole
step): no wrapper around the model, no rule about equal numbers of micro-batches. trainer/placement.py has both ways.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=20)  # a lost process ends the others instead of leaving them waiting
BUCKET_BYTES = 64 * 2**20  # gradients that travel together; more would only cost memory


class World:
    """Rank and size of this process, its device, and collectives that are free where there is one process."""

    def __init__(self, *, cpu: bool) -> None:
        self.rank, self.size, self.device = 0, 1, torch.device("cpu")
        self._group: dist.ProcessGroup | None = None  # that objects are gathered over; None is everybody's
        if cpu and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return  # nothing to set up, and importing accelerate takes a second
        from accelerate import PartialState

        self._state = PartialState(cpu=cpu, timeout=TIMEOUT)
        self.rank, self.size = self._state.process_index, self._state.num_processes
        self.device = self._state.device

    def aside(self) -> World:
        """Return the same processes with a line of their own to `gather` over, for another thread; all must call it."""
        other = copy.copy(self)
        if self.size > 1:
            other._group = dist.new_group(timeout=TIMEOUT, backend="gloo")
        return other

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, item: Any) -> list[Any]:
        """Return the item of every process, in rank order; tensors travel through the CPU."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item, group=self._group)
        return found

    def broadcast(self, item: Any) -> Any:
        """Return the main process's item on every process."""
        if self.size == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over all processes, in place."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                dist.all_reduce(bucket[0])
                continue
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def greatest(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        return max(self.gather(number))

    def join_rows(self, part: Tensor, rows: int) -> Tensor:
        """Return on the main process's CPU the tensor whose rows lie in rank order, cut as torch.chunk cuts.

        The other processes get an empty one.
        """
        each = -(-rows // self.size)
        padded = part.new_zeros(each, *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[:rows].cpu() if self.main else part.new_empty(0)

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            self._state.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            self._state.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors in order, together up to BUCKET_BYTES."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
