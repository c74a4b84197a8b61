"""Moments of AdamW in 8 bits: a code for each weight and a float32 scale for each block of a row.

Codes are square roots of a mean gradient and fourth roots of a mean square, times 127 and 255, so that what is far
below its block's largest is kept too: |sqrt|m'| - sqrt|m|| <= sqrt(scale) / 127, and 1/255 for fourth roots. Rounding
to the nearest would freeze a moment whose change in one step is smaller than half a code. Here a code is rounded up
or down by an evenly spread offset that moves with the step, so rounding averages out over steps; it depends on the
weight's place and the step only, so every process agrees and a resumed run goes on bit for bit. A block never crosses
a row, so rows may be dealt to processes. Block-wise 8-bit moments: arXiv 2110.02861.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 256  # weights that share a scale, at most
CHUNK = 1 << 17  # weights widened at once: small enough for a CPU's cache
LARGEST = {True: 127, False: 255}  # code by "signed"
TINY = 1e-38
ROW, COLUMN, TIME = 0.7548776662466927, 0.5698402909980532, 0.6180339887498949  # steps that fill [0, 1) evenly


class Packed:
    """One moment of a tensor of [R, ...]: codes [R, B, W] and scales [R, B, 1]."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale
        self.signed = codes.dtype == torch.int8

    @classmethod
    def zeros(cls, tensor: Tensor, *, signed: bool) -> Packed:
        """Return the moment of a fresh tensor."""
        rows, blocks, width = shape(tensor)
        codes = tensor.new_zeros(rows, blocks, width, dtype=torch.int8 if signed else torch.uint8)
        return cls(codes, tensor.new_zeros(rows, blocks, 1, dtype=torch.float32))

    def wide(self, rows: slice = slice(None)) -> Tensor:
        """Return some rows in float32, [r, B, W]."""
        root = self.codes[rows].float().div_(LARGEST[self.signed])
        if self.signed:
            return root.mul_(root.abs()).mul_(self.scale[rows])
        return root.square_().square_().mul_(self.scale[rows])

    def put(self, rows: slice, values: Tensor, offset: Tensor | float) -> None:
        """Store some rows, [r, B, W]; `offset` in [0, 1) decides between two codes, 0.5 takes the nearest."""
        size = values.abs()
        scale = size.amax(-1, keepdim=True)
        root = size.div_(scale.clamp_min(TINY)).sqrt_()
        root = root if self.signed else root.sqrt_()
        codes = root.mul_(LARGEST[self.signed]).add_(offset).floor_().clamp_(max=LARGEST[self.signed])
        if self.signed:
            codes.copysign_(values)
        else:
            codes.clamp_(min=1)  # a mean square of 0 beside a mean gradient that is not would make an endless step
        self.codes[rows], self.scale[rows] = codes.to(self.codes.dtype), scale


def shape(tensor: Tensor) -> tuple[int, int, int]:
    """Return rows, blocks of a row and weights of a block; a row's last block may be padded."""
    columns = tensor.shape[1:].numel()
    blocks = -(-columns // BLOCK)
    return tensor.shape[0], blocks, -(-columns // blocks)


def blocks(rows: Tensor) -> Tensor:
    """Return rows [r, ...] in blocks, [r, B, W], padded with zeros; a view where nothing is padded."""
    count, number, width = shape(rows)
    flat = rows.reshape(count, -1)
    if number * width > flat.shape[1]:
        flat = torch.nn.functional.pad(flat, (0, number * width - flat.shape[1]))
    return flat.view(count, number, width)


def unblocked(values: Tensor, like: Tensor) -> Tensor:
    """Return [r, B, W] in the shape of rows [r, ...]."""
    return values.flatten(1)[:, : like.shape[1:].numel()].reshape(like.shape)


def chunks(tensor: Tensor) -> Iterator[slice]:
    """Yield slices of rows."""
    rows = max(1, CHUNK // max(1, tensor.shape[1:].numel()))
    for start in range(0, tensor.shape[0], rows):
        yield slice(start, min(start + rows, tensor.shape[0]))


def offsets(tensor: Tensor, rows: slice, first: int, step: int) -> Tensor:
    """Return the rounding offsets of some rows in a step, [r, B, W]; `first` is the tensor's first row in the whole."""
    _, number, width = shape(tensor)
    place = torch.arange(first + rows.start, first + rows.stop, device=tensor.device, dtype=torch.float64)
    column = torch.arange(number * width, device=tensor.device, dtype=torch.float64)
    down, across = (place * ROW + step * TIME).frac_(), (column * COLUMN).frac_()
    return (down.float()[:, None, None] + across.float().view(number, width)).frac_()


def pack(values: Tensor, *, signed: bool) -> Packed:
    """Return a float32 moment [R, ...] packed, each code the nearest."""
    packed = Packed.zeros(values, signed=signed)
    for rows in chunks(values):
        packed.put(rows, blocks(values[rows]), 0.5)
    return packed
