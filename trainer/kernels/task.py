"""Task: one call of the operator without its tensors, and the room that computes its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trainer.kernels.chunks import INVARIANT_ROWS, chunk_bytes_of, even, fitting
from trainer.kernels.stats import TokenStats
from trainer.kernels.wants import Shape, Wants


@dataclass(frozen=True)
class Room:
    """Row epilogues (see rows.py), and optionally a whole forward pass for calls without gradient.

    `forward(hidden, weight, target, inverse, *, bias, shape, wants)` returns figures and argmax like `row_statistics`,
    or None where it has no kernel for the case.
    """

    name: str
    row_statistics: Callable[..., tuple[Tensor, Tensor]]
    logits_gradient_: Callable[..., Tensor]
    forward: Callable[..., tuple[Tensor, Tensor] | None] | None = None


@dataclass(frozen=True)
class Task:
    """What to compute and how much memory it may take."""

    room: Room
    shape: Shape
    wants: Wants
    chunk_bytes: int | None  # None until the device is known
    keep_bytes: int = 0
    kept_dtype: torch.dtype | None = None  # of kept logits; None: as wide as they were computed
    slices: bool = False  # the backward goes by slices of the vocabulary, not by rows
    invariant: bool = False  # every product of the forward has the same number of rows

    def on(self, hidden: Tensor, weight: Tensor) -> Task:
        """Return the task as it suits the device: on CUDA, logits are kept in two bytes and the backward slices."""
        wide, chunk_bytes = wide_of(hidden), self.chunk_bytes
        if chunk_bytes is None:
            chunk_bytes = chunk_bytes_of(hidden.device, len(weight) * wide.itemsize)
        narrow = torch.bfloat16 if hidden.is_cuda and wide == torch.float32 else None
        return replace(self, chunk_bytes=chunk_bytes, kept_dtype=narrow, slices=hidden.is_cuda)

    def fitting(self, bytes_each: int) -> int:
        """Return how many rows or columns of so many bytes fit a chunk."""
        assert self.chunk_bytes is not None
        return fitting(self.chunk_bytes, bytes_each)

    def rows(self, count: int, vocabulary: int, wide: torch.dtype) -> int:
        """Return how many rows of logits exist at once."""
        return INVARIANT_ROWS if self.invariant else even(count, self.fitting(vocabulary * wide.itemsize))

    def statistics(self, logits: Tensor, target: Tensor, inverse: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the figures and argmax of some rows of hidden @ weight.T."""
        return self.room.row_statistics(logits, target, inverse, bias=bias, shape=self.shape, wants=self.wants)

    def gradient_(
        self,
        logits: Tensor,
        target: Tensor,
        inverse: Tensor,
        scalars: Tensor,
        bias: Tensor | None,
        *,
        first: int = 0,
        dtype: torch.dtype,
    ) -> Tensor:
        """Overwrite columns [first, first + v) of hidden @ weight.T with their gradient in `dtype`."""
        return self.room.logits_gradient_(
            logits, target, inverse, scalars,
            first=first, bias=bias, shape=self.shape, wants=self.wants, dtype=dtype,
        )  # fmt: skip


def wide_of(hidden: Tensor) -> torch.dtype:
    """Return the dtype of statistics: float32, or float64 for float64."""
    return torch.promote_types(hidden.dtype, torch.float32)


def product_dtype(weight: Tensor, wide: torch.dtype) -> torch.dtype:
    """Return the dtype in which logit gradients meet the weight: its own where the device multiplies that natively."""
    native = weight.is_cuda or (weight.dtype == torch.bfloat16 and multiplies_bfloat16())
    return weight.dtype if native else wide


@cache
def multiplies_bfloat16() -> bool:
    """Return whether this CPU has instructions for it; emulated, it takes many times longer than float32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def token_stats(figures: dict[str, Tensor], argmax: Tensor) -> TokenStats:
    """Return the TokenStats of figures by name."""
    optional = (
        "sum_p2", "sum_p2_logp", "entropy_gain", "logprob2", "entropy2", "kept_mass", "kept_logprob", "nucleus_entropy",
    )  # fmt: skip
    always = {name: figures[name] for name in ("logprob", "entropy", "lse", "max_logit")}
    given: dict[str, Any] = {name: figures.get(name) for name in optional}
    return TokenStats(**always, **given, argmax=argmax)
