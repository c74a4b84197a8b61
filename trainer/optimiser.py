"""AdamW with float32 master weights where the model's are narrower, the learning rate's course, and clipping.

A bfloat16 weight has 8 bits of precision and forgets updates of the size that reinforcement learning makes, so the
optimiser keeps and moves float32 copies, and sums the gradients of micro-batches in float32. Sharded weights are
float32 themselves. Bytes of a trained weight, besides the model's own 4 or 2: gradient 4, moments 8 or about 2,
master 4 where the model is bfloat16; in shards, that over the number of processes, and the model's weight too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.adamw import Adamw, Adamw8
from trainer.config import OptimiserConfig
from trainer.placement import Whole


class Optimiser:
    """Moves the weights of a policy, the same on every process or each its own part of them."""

    def __init__(self, parameters: list[Parameter], config: OptimiserConfig, placement: Whole) -> None:
        self.config, self.placement = config, placement
        self.parameters = parameters
        self.masters = [self._master(parameter) for parameter in parameters]
        for parameter, master in self._narrow():
            parameter.register_post_accumulate_grad_hook(_into(master))
        if config.state_precision == "8bit":
            sizes = [parameter.numel() for parameter in parameters]
            firsts = [placement.first_row(parameter) for parameter in parameters]
            self._adamw: Adamw | Adamw8 = Adamw8(self.masters, config, sizes=sizes, firsts=firsts)
        else:
            self._adamw = Adamw(self.masters, config)

    @property
    def bytes(self) -> int:
        """Return what the moments and the float32 copies of narrower weights take in this process."""
        return self._adamw.bytes + sum(master.nbytes for _, master in self._narrow())

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        config = self.config
        warm = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
        left = max(1, config.steps - config.warmup_steps)
        done = min(1.0, max(0, step - 1 - config.warmup_steps) / left)
        after = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return config.learning_rate * warm * after[config.schedule]

    def accumulator(self, parameter: Tensor) -> Tensor | None:
        """Return the float32 memory in which a whole weight's gradient is summed up; None where there is none."""
        if self.placement.sharded or not parameter.requires_grad:
            return None
        master = next(m for p, m in zip(self.parameters, self.masters, strict=True) if p is parameter)
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return master.grad

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in [*self.parameters, *self.masters]:
            parameter.grad = None

    def step(self, step: int) -> float | None:
        """Sum gradients over processes, clip and update; return the norm before clipping, None where it is not finite.

        A norm that is not finite leaves weights and moments as they were.
        """
        gradients = self._gradients()
        self.placement.sum_(gradients)
        norm = self.placement.norm(gradients)
        if not math.isfinite(norm):
            self.zero_grad()
            return None
        self._adamw.step(self.rate(step), min(1.0, self.config.max_gradient_norm / (norm + 1e-6)))
        self._publish()
        self.zero_grad()
        return norm

    def _gradients(self) -> list[Tensor]:
        """Return this process's gradients as the masters hold them; zeros where a weight took no part."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if self.placement.sharded and parameter.grad is not None:
                master.grad = self.placement.local(parameter.grad)
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [master.grad for master in self.masters if master.grad is not None]

    def _master(self, parameter: Parameter) -> Tensor:
        """Return what AdamW moves in a weight's stead: the weight, a float32 copy, or this process's rows of it."""
        if self.placement.sharded:
            return self.placement.local(parameter).detach().requires_grad_()
        if parameter.dtype == torch.float32:
            return parameter
        return parameter.detach().float().clone().requires_grad_()

    def _narrow(self) -> list[tuple[Parameter, Tensor]]:
        """Return the weights that are rounded copies of their masters."""
        pairs = zip(self.parameters, self.masters, strict=True)
        return [] if self.placement.sharded else [(p, m) for p, m in pairs if m is not p]

    @torch.no_grad()
    def _publish(self) -> None:
        """Round the masters into the model's weights."""
        if pairs := self._narrow():
            torch._foreach_copy_([parameter for parameter, _ in pairs], [master for _, master in pairs])

    def state(self) -> dict[str, Any]:
        """Return what resuming needs, whole: moments, counts and the masters that are not the weights themselves.

        Sharded: all processes must call, and only the main one gets it.
        """
        rows, whole = [len(parameter) for parameter in self.parameters], self.placement.whole
        kept = [
            whole(master, number) if parameter is not master and self.placement.narrow else None
            for parameter, master, number in zip(self.parameters, self.masters, rows, strict=True)
        ]
        return {"adamw": self._adamw.state(rows, whole), "masters": kept}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a saved state; raises ValueError where it belongs to other weights."""
        if len(state["masters"]) != len(self.masters):
            raise ValueError(f"the saved optimiser has {len(state['masters'])} tensors, the model {len(self.masters)}")
        self._adamw.load(state["adamw"], self.placement.part)
        with torch.no_grad():
            for master, saved in zip(self.masters, state["masters"], strict=True):
                if saved is not None:
                    master.copy_(self.placement.part(saved))
        self._publish()


def _into(master: Tensor) -> Any:
    """Return a hook that moves a finished gradient into its master's."""

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)  # widened as it is read
        parameter.grad = None

    return move
