"""AdamW with float32 master weights where the model's are narrower, the learning rate's course, and clipping.

A bfloat16 weight has 8 bits of precision and forgets updates of the size that reinforcement learning makes, so the
optimiser keeps and moves float32 copies, and sums the gradients of micro-batches in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.config import OptimiserConfig
from trainer.distributed import World


class Optimiser:
    """Moves the weights of a policy, the same on every process."""

    def __init__(self, parameters: list[Parameter], config: OptimiserConfig, world: World) -> None:
        self.config, self.world = config, world
        self.parameters = parameters
        self.masters = [_master(parameter) for parameter in parameters]
        for parameter, master in zip(parameters, self.masters, strict=True):
            if master is not parameter:
                parameter.register_post_accumulate_grad_hook(_into(master))
        self._adamw = torch.optim.AdamW(
            self.masters, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon,
            weight_decay=config.weight_decay,
        )  # fmt: skip

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        config = self.config
        warm = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
        left = max(1, config.steps - config.warmup_steps)
        done = min(1.0, max(0, step - 1 - config.warmup_steps) / left)
        after = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return config.learning_rate * warm * after[config.schedule]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in [*self.parameters, *self.masters]:
            parameter.grad = None

    def step(self, step: int) -> float | None:
        """Sum gradients over processes, clip and update; return the norm before clipping, None where it is not finite.

        A norm that is not finite leaves weights and moments as they were.
        """
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        self.world.sum_([master.grad for master in self.masters if master.grad is not None])
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters, self.config.max_gradient_norm))
        if not math.isfinite(norm):
            self.zero_grad()
            return None
        for group in self._adamw.param_groups:
            group["lr"] = self.rate(step)
        self._adamw.step()
        self._publish()
        self.zero_grad()
        return norm

    @torch.no_grad()
    def _publish(self) -> None:
        """Round the masters into the model's weights."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    def state(self) -> dict[str, Any]:
        """Return what resuming needs: moments, counts and the masters that are not the weights themselves."""
        masters = [None if m is p else m.detach() for m, p in zip(self.masters, self.parameters, strict=True)]
        return {"adamw": self._adamw.state_dict()["state"], "masters": masters}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a saved state; raises ValueError where it belongs to other weights."""
        if len(state["masters"]) != len(self.masters):
            raise ValueError(f"the saved optimiser has {len(state['masters'])} tensors, the model {len(self.masters)}")
        self._adamw.load_state_dict({**self._adamw.state_dict(), "state": state["adamw"]})
        with torch.no_grad():
            for master, saved in zip(self.masters, state["masters"], strict=True):
                if saved is not None:
                    master.copy_(saved)
        self._publish()


def _master(parameter: Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    return parameter.detach().float().clone().requires_grad_()


def _into(master: Tensor) -> Any:
    """Return a hook that moves a finished gradient into its master's."""

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    return move
