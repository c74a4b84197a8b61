"""Placement: where weights, gradients and moments lie among the processes of a run.

`Whole`: every process holds them all and sums gradients once per update; its passes need nobody else.
`Sharded`: FSDP2 (torch's `fully_shard`, what accelerate calls fsdp_version 2). Every process holds some rows of each
tensor. Layers are gathered one at a time while a differentiated pass runs, and all at once, for as long as it takes,
where nothing is differentiated: sampling, scoring, saving.

The policy and the optimiser speak to either in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trainer.distributed import World

T = TypeVar("T")


class Whole:
    """Every process holds every weight."""

    sharded = False

    def __init__(self, lm: Any, world: World | None) -> None:
        """`world` None stands for a single process."""
        self.world = world
        self.narrow = lm.dtype != torch.float32  # whether the model computes with weights rounded from masters

    def run(self, compute: Callable[[], T]) -> T:
        """Return `compute()`, one micro-batch of a differentiated pass up to its loss."""
        return compute()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Let the model be called freely, without gradients, inside the context."""
        yield

    def state_dict(self, lm: Any) -> dict[str, Tensor] | None:
        """Return what to save of the model, inside `gathered`; None stands for its own state_dict()."""
        return None

    def rounds(self, count: int) -> int:
        """Return how many micro-batches this process has to run where it needs `count`."""
        return count

    def local(self, tensor: Tensor) -> Tensor:
        """Return what this process holds of a weight or of its gradient; shares memory."""
        return tensor

    def first_row(self, parameter: Tensor) -> int:
        """Return which row of a weight this process's part begins with."""
        return 0

    def whole(self, part: Tensor, rows: int) -> Tensor:
        """Return a tensor of `rows` rows for saving, given this process's rows; empty where nothing is saved."""
        return part.detach()

    def part(self, whole: Tensor) -> Tensor:
        """Return a copy of this process's rows of a saved tensor."""
        return whole.clone()

    def sum_(self, gradients: Sequence[Tensor]) -> None:
        """Add up gradients over the processes, in place, where that has not happened yet."""
        if self.world:
            self.world.sum_(gradients)

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """Return the Euclidean norm of all gradients, after `sum_`."""
        return float(torch.nn.utils.get_total_norm(gradients))


class Sharded(Whole):
    """Every process holds some rows of every weight, in float32, and computes in the model's own dtype.

    Everything here that communicates must be called by all processes alike.
    """

    sharded = True
    world: World

    def __init__(self, lm: Any, world: World) -> None:
        """Shard a model that was loaded on the CPU, unit by unit, so that a GPU never holds more than one whole."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        super().__init__(lm, world)
        self._names = frozenset(lm.state_dict())
        mesh = init_device_mesh(world.device.type, (world.size,))
        policy = MixedPrecisionPolicy(param_dtype=lm.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        units: list[Any] = [*layers(lm), _Root(lm)]
        self._layers, self._root = units[:-1], units[-1]
        for unit in units:
            for parameter in unit.parameters():
                if parameter.dtype != torch.float32:
                    parameter.data = parameter.data.float()
            fully_shard(unit, mesh=mesh, mp_policy=policy)
            unit.set_gradient_divide_factor(1.0)  # the loss is the whole step's already: sum, never average
            unit.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
            unit.set_reduce_scatter_unused_params(True)  # a process with nothing to learn from joins in all the same
        with torch.no_grad():
            self._root(lambda: None)  # FSDP learns here which unit is the root
        self._root.reset_iter_state()
        self._contexts = 0  # of `gathered` that are open

    def run(self, compute: Callable[[], T]) -> T:
        """Return `compute()` with the root unit's weights (embeddings, last norm, head) there, layers coming as called.

        So the head is reached through a module whose hooks gather it and take its gradient, tied or not.
        """
        return self._root(compute)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        self._contexts += 1
        try:
            if self._contexts == 1:
                self._gather()
            yield
        finally:
            self._contexts -= 1
            if not self._contexts:
                self._release()

    def _gather(self) -> None:
        for layer in self._layers:
            layer.set_reshard_after_forward(False, recurse=False)
        for unit in (*self._layers, self._root):
            unit.unshard()

    def _release(self) -> None:
        for layer in self._layers:
            layer.set_reshard_after_forward(True, recurse=False)
        self._root.reset_iter_state()

    def state_dict(self, lm: Any) -> dict[str, Tensor] | None:
        """The model's own would free the gathered weights first."""
        tensors = [*lm.named_parameters(remove_duplicate=False), *lm.named_buffers(remove_duplicate=False)]
        return {name: tensor.detach() for name, tensor in tensors if name in self._names}

    def rounds(self, count: int) -> int:
        return self.world.greatest(count)

    @torch.no_grad()
    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local()  # type: ignore[attr-defined]  # a DTensor

    def first_row(self, parameter: Tensor) -> int:
        return min(len(parameter), self.world.rank * self._each(len(parameter)))

    def whole(self, part: Tensor, rows: int) -> Tensor:
        return self.world.join_rows(part.detach(), rows)

    def part(self, whole: Tensor) -> Tensor:
        each = self._each(len(whole))
        return whole[self.world.rank * each :][:each].clone()

    def sum_(self, gradients: Sequence[Tensor]) -> None:
        """Do nothing: the backward pass has summed them, layer by layer."""

    def norm(self, gradients: Sequence[Tensor]) -> float:
        squares = torch.nn.utils.get_total_norm(gradients).double().square()
        self.world.sum_([squares])
        return float(squares.sqrt())

    def _each(self, rows: int) -> int:
        return -(-rows // self.world.size)  # as torch.chunk cuts; the last processes may get none


class _Root(nn.Module):
    """The outermost unit: its forward is whatever a micro-batch computes."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


def layers(lm: Any) -> list[Any]:
    """Return the layers of a model that transformers names as not to be split, in order."""
    names = set(getattr(lm, "_no_split_modules", None) or ())
    return [module for module in lm.modules() if type(module).__name__ in names]
