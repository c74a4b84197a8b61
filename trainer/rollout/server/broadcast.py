"""Weights on their way through memory: one process group of a trainer (rank 0) and a server (rank 1).

NCCL where both hold the weights on GPUs, gloo elsewhere; the trainer decides (`common`) and says so. The group is its
own: it neither needs nor disturbs the trainer's. torch's store, where the two meet, knows no password and listens on
every interface; who cannot trust the network between trainer and server sends weights through a folder instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.rollout.server.frame import FrameError

TIMEOUT = timedelta(minutes=5)
BLOCKING = "TORCH_NCCL_BLOCKING_WAIT"  # a lost peer is then an error of the tensor on its way, not the process's end
DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)}
LARGEST = 1 << 40  # bytes of one tensor that a server believes in


class Broadcast:
    """One end of the line."""

    def __init__(self, device: torch.device, rank: int, host: str, port: int = 0) -> None:
        """Rank 0 opens the meeting place; `port` 0 lets the system choose it."""
        self.device = device
        store = dist.TCPStore(host, port, 2, is_master=rank == 0, timeout=TIMEOUT, wait_for_workers=False)
        self.port = store.port
        self._store, self._rank = store, rank
        self._group: Any = None

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Send every tensor in the order of `described`."""
        for tensor in tensors.values():
            self._broadcast(_bytes(tensor.to(self.device).contiguous()))

    def receive(self, described: list[dict[str, Any]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that were announced."""
        for entry in described:
            name, dtype, shape = _checked(entry)
            tensor = torch.empty(shape, dtype=dtype, device=self.device)
            self._broadcast(_bytes(tensor))
            yield name, tensor

    def _broadcast(self, data: Tensor) -> None:
        if data.numel():
            options = dist.BroadcastOptions()
            options.rootRank = options.rootTensor = 0
            self._joined().broadcast([data], options).wait()

    def _joined(self) -> Any:
        """Return the process group; made at the first tensor, because it waits for the other end."""
        if self._group is None:
            if self.device.type == "cuda":
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = TIMEOUT
                with _environment(BLOCKING, "1"):  # read once, when a group is made
                    self._group = dist.ProcessGroupNCCL(self._store, self._rank, 2, options)
            else:
                self._group = dist.ProcessGroupGloo(self._store, self._rank, 2, TIMEOUT)
        return self._group


def common(ours: torch.device, theirs: object) -> torch.device:
    """Return where weights lie on their way, given this side's device and the type of the other's."""
    return ours if ours.type == theirs else torch.device("cpu")


def described(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return what a receiver must know to make room; plain JSON."""
    return [{"name": name, "dtype": str(t.dtype), "shape": list(t.shape)} for name, t in tensors.items()]


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _bytes(tensor: Tensor) -> Tensor:
    """Return a tensor's memory, so that every dtype travels alike."""
    return tensor.reshape(-1).view(torch.uint8)


def _checked(entry: Any) -> tuple[str, torch.dtype, list[int]]:
    try:
        name, dtype, shape = str(entry["name"]), DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError("an announced weight has no name, dtype or shape that could be read") from error
    size = dtype.itemsize
    for length in shape:
        size *= length
    if not 0 <= size <= LARGEST:
        raise FrameError(f"the announced weight {name[:80]} is too large")
    return name, dtype, shape
