"""World: the processes of one run and the few things they say to each other. One process needs no torch.distributed.

Gradients are summed once per update over all processes (the loss is already a loss of the whole step), so there is no
wrapper around the model and no rule about equal numbers of micro-batches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=20)  # a lost process ends the others instead of leaving them waiting


class World:
    """Rank and size of this process, its device, and collectives that are free where there is one process."""

    def __init__(self, *, cpu: bool) -> None:
        self.rank, self.size, self.device = 0, 1, torch.device("cpu")
        if cpu and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return  # nothing to set up, and importing accelerate takes a second
        from accelerate import PartialState

        self._state = PartialState(cpu=cpu, timeout=TIMEOUT)
        self.rank, self.size = self._state.process_index, self._state.num_processes
        self.device = self._state.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, item: Any) -> list[Any]:
        """Return the item of every process, in rank order; tensors travel through the CPU."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item)
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
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            self._state.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            self._state.destroy_process_group()
