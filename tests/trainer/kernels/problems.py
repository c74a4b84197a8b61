"""Random problems for the kernels, every option of theirs, and the two drivers by force."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from trainer.kernels.chunked import chunked
from trainer.kernels.reference import reference
from trainer.kernels.rooms import load_room
from trainer.kernels.stats import TokenStats
from trainer.kernels.task import Task
from trainer.kernels.wants import Shape, Wants

RARE: dict[str, dict[str, Any]] = {
    "second temperature": {"second": 0.7},
    "min-p": {"min_p": 0.05},
    "nucleus": {"top_p": 0.8},
    "nucleus with the crossing token": {"top_p": 0.6, "crossing": True},
    "all": {"moments": True, "second": 1.4, "min_p": 0.1, "top_p": 0.9},
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.4},
    "cap": {"softcap": 2.0},
    "both": {"scale": -1.7, "softcap": 3.0},
}


@dataclass
class Problem:
    """Operands in float64 unless said otherwise; `inverse` is 1 / temperature of each row."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    target: Tensor
    inverse: Tensor

    @classmethod
    def random(cls, n: int, v: int, h: int = 5, dtype: torch.dtype = torch.float64) -> Problem:
        wide = torch.promote_types(dtype, torch.float32)
        leaves = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in ((n, h), (v, h), (v,))]
        return cls(*leaves, torch.randint(0, v, (n,)), 1 / (torch.rand(n, dtype=wide) + 0.5))

    @property
    def leaves(self) -> list[Tensor]:
        return [self.hidden, self.weight, self.bias]

    def double(self) -> Problem:
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        return Problem(*leaves, self.target, self.inverse.double())


def seed_all() -> int:
    """Choose a fresh seed, print it, and use it."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return seed


def task(
    shape: dict[str, Any] | None = None, wants: dict[str, Any] | None = None, *, rows: int = 1000, **fields: Any
) -> Task:
    """Return a task whose chunks hold about `rows` thousand numbers of float64."""
    return Task(load_room("chunked"), Shape(**shape or {}), Wants(**wants or {}), chunk_bytes=8 * rows, **fields)


def chunked_stats(problem: Problem, given: Task) -> TokenStats:
    return chunked(problem.hidden, problem.weight, problem.target, problem.inverse, problem.bias, given)


def reference_stats(problem: Problem, given: Task) -> TokenStats:
    return reference(problem.hidden, problem.weight, problem.target, problem.inverse, problem.bias, given)


def carried(stats: TokenStats) -> dict[str, Tensor]:
    """Return the statistics that carry a gradient, by name."""
    values = {field.name: getattr(stats, field.name) for field in fields(stats)}
    return {name: value for name, value in values.items() if value is not None and value.requires_grad}


def slopes(stats: TokenStats, problem: Problem, upstream: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of sum over names of <upstream, statistic> by hidden, weight and bias."""
    values = carried(stats)
    loss = sum((values[name] * slope).sum() for name, slope in upstream.items())
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, problem.leaves)


def upstream_of(given: Task, n: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return a random gradient for every statistic that carries one."""
    return {name: torch.randn(n, dtype=dtype) for name in given.wants.differentiable}
