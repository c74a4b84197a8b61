"""AdamW (arXiv 1711.05101) with moments in float32, 8 bytes a weight, or in 8 bits, about 2 (trainer/eightbit.py).

Gradients are read from `tensor.grad`; clipping is folded into the update, so that no pass is spent on it alone. Saved
states have one format, the moments whole or packed; either precision takes over the other's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer import eightbit
from trainer.config import OptimiserConfig
from trainer.eightbit import Packed

FUSED = ("cpu", "cuda")  # on a CPU 5 times as fast as foreach at 135M weights, 8 times at many small tensors
SMALL = 4096  # weights below which a tensor keeps float32 moments
SIGNED = {"exp_avg": True, "exp_avg_sq": False}

Join = Callable[[Tensor, int], Tensor]  # this process's rows and the number of all, to all rows
Part = Callable[[Tensor], Tensor]  # all rows, to a copy of this process's


class Adamw:
    """Moments in float32; torch's fused kernel where the device has one."""

    def __init__(self, tensors: Sequence[Tensor], config: OptimiserConfig) -> None:
        self.tensors = list(tensors)
        self._fused = all(tensor.device.type in FUSED for tensor in tensors)
        self._adamw = torch.optim.AdamW(
            self.tensors or [torch.empty(0)], lr=config.learning_rate, betas=(config.beta1, config.beta2),
            eps=config.epsilon, weight_decay=config.weight_decay, fused=self._fused, foreach=not self._fused,
        )  # fmt: skip

    @property
    def bytes(self) -> int:
        """Return what the moments take."""
        kept = [value for entry in self._adamw.state.values() for value in entry.values()]
        return sum(value.nbytes for value in kept if isinstance(value, Tensor))

    def step(self, rate: float, shrink: float) -> None:
        """Move the tensors against their gradients times `shrink`."""
        gradients = [tensor.grad for tensor in self.tensors if tensor.grad is not None]
        if self._fused and gradients:  # the kernel divides as it reads
            self._adamw.grad_scale = gradients[0].new_tensor(1 / shrink)  # type: ignore[attr-defined]
            self._adamw.found_inf = gradients[0].new_zeros(())  # type: ignore[attr-defined]
        elif shrink < 1:
            torch._foreach_mul_(gradients, shrink)
        self._adamw.param_groups[0]["lr"] = rate
        self._adamw.step()

    def state(self, rows: Sequence[int], join: Join) -> dict[int, Any]:
        """Return step, exp_avg and exp_avg_sq by the tensor's place; `rows` is how many each has over all processes."""
        found = self._adamw.state_dict()["state"]
        return {
            i: {name: value if name == "step" else join(value, rows[i]) for name, value in entry.items()}
            for i, entry in found.items()
        }

    def load(self, state: dict[int, Any], part: Part) -> None:
        """Take over a saved state."""
        mine = {
            i: {name: _moment(value, part, self.tensors[i]) for name, value in entry.items()}
            for i, entry in state.items()
        }
        self._adamw.load_state_dict({**self._adamw.state_dict(), "state": mine})


class Adamw8:
    """Moments in 8 bits, but for tensors that are small or have one dimension; `firsts` are the tensors' first rows.

    Which tensors are packed depends on `sizes`, the numbers of weights over all processes.
    """

    def __init__(
        self, tensors: Sequence[Tensor], config: OptimiserConfig, *, sizes: Sequence[int], firsts: Sequence[int]
    ) -> None:
        self.config, self.tensors, self.firsts = config, list(tensors), firsts
        self.packed = {
            i: {name: Packed.zeros(tensor, signed=signed) for name, signed in SIGNED.items()}
            for i, tensor in enumerate(tensors)
            if tensor.ndim > 1 and sizes[i] >= SMALL
        }
        self.plain = [i for i in range(len(self.tensors)) if i not in self.packed]
        self._rest = Adamw([self.tensors[i] for i in self.plain], config)
        self.steps = 0

    @property
    def bytes(self) -> int:
        """Return what the moments take."""
        packed = [moment for moments in self.packed.values() for moment in moments.values()]
        return self._rest.bytes + sum(moment.codes.nbytes + moment.scale.nbytes for moment in packed)

    def step(self, rate: float, shrink: float) -> None:
        """Move the tensors against their gradients times `shrink`."""
        if self.plain:
            self._rest.step(rate, shrink)
        self.steps += 1
        for i, moments in self.packed.items():
            for rows in eightbit.chunks(self.tensors[i]):
                self._move(i, rows, moments["exp_avg"], moments["exp_avg_sq"], rate, shrink)

    @torch.no_grad()
    def _move(self, i: int, rows: slice, first: Packed, second: Packed, rate: float, shrink: float) -> None:
        """Update some rows of a tensor and their moments."""
        config, tensor = self.config, self.tensors[i]
        assert tensor.grad is not None
        weight, gradient = tensor[rows], eightbit.blocks(tensor.grad[rows]) * shrink
        mean = first.wide(rows).lerp_(gradient, 1 - config.beta1)
        square = second.wide(rows).mul_(config.beta2).addcmul_(gradient, gradient, value=1 - config.beta2)
        unbiased = math.sqrt(1 - config.beta2**self.steps)
        change = mean / square.sqrt().div_(unbiased).add_(config.epsilon)
        weight.mul_(1 - rate * config.weight_decay)
        weight.sub_(eightbit.unblocked(change, weight), alpha=rate / (1 - config.beta1**self.steps))
        offset = eightbit.offsets(tensor, rows, self.firsts[i], self.steps)
        first.put(rows, mean, offset)
        second.put(rows, square, offset)

    def state(self, rows: Sequence[int], join: Join) -> dict[int, Any]:
        """Return the same as Adamw, with {codes, scale} for a packed moment."""
        if not self.steps:
            return {}
        rest = self._rest.state([rows[i] for i in self.plain], join)
        found: dict[int, Any] = {self.plain[place]: entry for place, entry in rest.items()}
        for i, moments in self.packed.items():
            found[i] = {"step": torch.tensor(float(self.steps))} | {
                name: {"codes": join(moment.codes, rows[i]), "scale": join(moment.scale, rows[i])}
                for name, moment in moments.items()
            }
        return found

    def load(self, state: dict[int, Any], part: Part) -> None:
        """Take over a saved state."""
        self._rest.load({place: state[i] for place, i in enumerate(self.plain) if i in state}, part)
        for i in self.packed:
            if i not in state:
                continue
            self.steps = int(state[i]["step"])
            for name, signed in SIGNED.items():
                value, device = state[i][name], self.tensors[i].device
                self.packed[i][name] = (
                    eightbit.pack(part(value).to(device), signed=signed)
                    if isinstance(value, Tensor)
                    else Packed(part(value["codes"]).to(device), part(value["scale"]).to(device))
                )


def _moment(value: Any, part: Part, tensor: Tensor) -> Tensor:
    """Return this process's rows of a saved step count or moment in float32."""
    if isinstance(value, Tensor):
        return part(value) if value.ndim else value
    return eightbit.unblocked(Packed(part(value["codes"]), part(value["scale"])).wide(), tensor)
