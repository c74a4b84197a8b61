"""The three products of the head, written into memory that exists, accumulated in the wide dtype.

Products of bfloat16 numbers are exact in float32, so no rounding of the logits is added: CUDA keeps its accumulator,
elsewhere the narrow weight is widened, a few rows at a time. A CPU that multiplies bfloat16 natively does so where the
result is a gradient of that dtype; its logits would come out rounded, so they do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

WIDENED_BYTES = 2**22  # of the weight widened at once


def logits_(out: Tensor, states: Tensor, weight: Tensor) -> Tensor:
    """Write states @ weight.T, [n, H] and [v, H], into `out` [n, v] and return it."""
    if states.dtype == weight.dtype and (out.is_cuda or out.dtype == states.dtype):
        return _multiply_(out, states, weight.T)
    states = states.to(out.dtype)
    for part, wide in _widened(weight, out.dtype):
        torch.mm(states, wide.T, out=out[:, part])
    return out


def states_gradient_(out: Tensor, gradient: Tensor, weight: Tensor, *, add: bool = False) -> Tensor:
    """Write gradient @ weight, [n, v] and [v, H], into `out` [n, H] or add it there."""
    if gradient.dtype == weight.dtype:
        return _multiply_(out, gradient, weight, add=add)
    for part, wide in _widened(weight, out.dtype):
        _multiply_(out, gradient[:, part], wide, add=add or part.start > 0)
    return out


def weight_gradient_(out: Tensor, gradient: Tensor, states: Tensor, *, add: bool = False) -> Tensor:
    """Write gradient.T @ states, [n, v] and [n, H], into `out` [v, H] or add it there."""
    if gradient.dtype == states.dtype:
        return _multiply_(out, gradient.T, states, add=add)
    return _multiply_(out, gradient.T, states.to(gradient.dtype), add=add)


def _multiply_(out: Tensor, left: Tensor, right: Tensor, *, add: bool = False) -> Tensor:
    """Write left @ right, of one dtype, into `out` of this or another one, or add it there."""
    if out.dtype != left.dtype and not (out.is_cuda and out.dtype.itemsize > left.dtype.itemsize):
        return out.add_(left @ right) if add else out.copy_(left @ right)
    wide: dict[str, Any] = {} if out.dtype == left.dtype else {"out_dtype": out.dtype}
    if add:
        return torch.addmm(out, left, right, **wide, out=out)
    return torch.mm(left, right, **wide, out=out)


def _widened(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, those rows of the weight in `dtype`), through one scratch array."""
    size = max(1, WIDENED_BYTES // (weight.shape[1] * dtype.itemsize))
    scratch = weight.new_empty(min(size, len(weight)), weight.shape[1], dtype=dtype)
    for start in range(0, len(weight), size):
        part = slice(start, min(start + size, len(weight)))
        yield part, scratch[: part.stop - start].copy_(weight[part])
