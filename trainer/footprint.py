"""Footprint: what the process's memory is used for, measured where that costs nothing, counted where it does not.

On a GPU the allocator knows how much a forward pass leaves behind. On a CPU autograd tells what it saves, and the
kernel tells the most that was ever resident.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import RunConfig
from trainer.kernels.chunks import Buffer
from trainer.memory import MemoryPlan, plan
from trainer.model_files import inspect_folder
from trainer.optimiser import Optimiser
from trainer.policy import Policy

STATUS = Path("/proc/self/status")


class Footprint:
    """Watches the process that trains; `figures` are bytes, the most so far where they change."""

    def __init__(
        self, policy: Policy, reference: Policy | None, optimiser: Optimiser, foretold: MemoryPlan | None
    ) -> None:
        self.policy, self.reference, self.optimiser = policy, reference, optimiser
        self.foretold, self.device = foretold, policy.device
        self.passes = None if policy.placement.sharded else Passes(policy.lm.base_model, policy.device)

    def figures(self) -> dict[str, float]:
        """Return the metrics of memory; what cannot be told is left out."""
        models = [policy.lm for policy in (self.policy, self.reference) if policy is not None]
        found = {
            "peak": peak(self.device),
            "weights": held(weight for model in models for weight in model.parameters()),
            "optimiser": float(self.optimiser.bytes),
            "logits": float(Buffer.largest),
        }
        if self.passes is not None:
            found["activations"] = float(self.passes.largest)
        if self.foretold is not None:
            found["predicted"] = float(self.foretold.seen_bytes)
        return {f"memory/{name}_bytes": value for name, value in found.items()}


class Passes:
    """The most that the forward passes of one micro-batch left for its backward pass, bytes."""

    def __init__(self, decoder: nn.Module, device: torch.device) -> None:
        """`decoder` is the model without its output layer."""
        self.device, self.largest = device, 0
        self._saved: dict[int, int] = {}  # bytes by address
        self._before, self._own = 0, set[int]()
        self._watch: Any = None
        decoder.register_forward_pre_hook(self._begin)
        decoder.register_forward_hook(self._end, always_call=True)

    def _begin(self, decoder: nn.Module, inputs: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if self.device.type == "cuda":
            self._before = torch.cuda.memory_allocated(self.device)
            return
        held = (*decoder.parameters(), *decoder.buffers())
        self._own = {tensor.untyped_storage().data_ptr() for tensor in held}
        self._watch = torch.autograd.graph.saved_tensors_hooks(self._note, _as_it_is)
        self._watch.__enter__()

    def _end(self, decoder: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if self.device.type == "cuda":
            self._saved[len(self._saved)] = torch.cuda.memory_allocated(self.device) - self._before
        elif self._watch:
            self._watch.__exit__(None, None, None)
            self._watch = None
        self.largest = max(self.largest, sum(self._saved.values()))
        if output is not None and output[0].requires_grad:
            output[0].register_hook(self._forget)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def _forget(self, gradient: Tensor) -> None:
        """A backward pass began: the next forward pass belongs to another micro-batch."""
        self._saved.clear()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def foretold(config: RunConfig, source: Path, device: torch.device) -> MemoryPlan | None:
    """Return what was to be expected of a run with the model in a folder, on this very device."""
    info = inspect_folder(source, source=str(source), kind="folder")
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return plan(config, info, gpu_bytes=total)


def held(tensors: Iterable[Tensor]) -> float:
    """Return the bytes of some tensors."""
    return float(sum(tensor.nbytes for tensor in tensors))


def peak(device: torch.device) -> float:
    """Return the most memory used so far, bytes: the device's on a GPU, the process's on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if STATUS.is_file():  # getrusage also counts what the process was before it became this program
        lines = STATUS.read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
