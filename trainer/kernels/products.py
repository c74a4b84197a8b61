"""The three products of the head, written into memory that exists, accumulated in the wide dtype.

Products of bfloat16 numbers are exact in float32, so no rounding of the logits is added: CUDA keeps its accumulator,
elsewhere the narrow weight is widened, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

WIDENED_BYTES = 2**22  # of the weight widened at once


def logits_(out: Tensor, states: Tensor, weight: Tensor) -> Tensor:
    """Write states @ weight.T, [n, H] and [v, H], into `out` [n, v] and return it."""
    if _direct(out, states, weight):
        return _multiply_(out, states, weight.T)
    states = states.to(out.dtype)
    for part, wide in _widened(weight, out.dtype):
        torch.mm(states, wide.T, out=out[:, part])
    return out


def states_gradient_(out: Tensor, gradient: Tensor, weight: Tensor, *, add: bool = False) -> Tensor:
    """Write gradient @ weight, [n, v] and [v, H], into `out` [n, H] or add it there."""
    if _direct(out, gradient, weight):
        return _multiply_(out, gradient, weight, add=add)
    for part, wide in _widened(weight, out.dtype):
        _multiply_(out, gradient[:, part], wide, add=add or part.start > 0)
    return out


def weight_gradient_(out: Tensor, gradient: Tensor, states: Tensor, *, add: bool = False) -> Tensor:
    """Write gradient.T @ states, [n, v] and [n, H], into `out` [v, H] or add it there."""
    if _direct(out, gradient, states):
        return _multiply_(out, gradient.T, states, add=add)
    if out.dtype == gradient.dtype:
        return _multiply_(out, gradient.T, states.to(out.dtype), add=add)
    return out.copy_(gradient.T @ states.to(gradient.dtype))  # a slice written once, rounded once


def _direct(out: Tensor, left: Tensor, right: Tensor) -> bool:
    """Return whether one call does it: equal dtypes, or CUDA with an accumulator wider than its operands."""
    return left.dtype == right.dtype and (out.dtype == left.dtype or out.is_cuda)


def _multiply_(out: Tensor, left: Tensor, right: Tensor, *, add: bool = False) -> Tensor:
    wide = {} if out.dtype == left.dtype else {"out_dtype": out.dtype}
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
