"""A forward pass without logits in memory, for calls without gradient: product and row sums in one Triton kernel.

A program takes a tile of rows through its share of the vocabulary, tile after tile: the float32 accumulators of a tile
go straight into the online sums of online_triton.py and are never rounded. A second kernel joins the shares of a row
in a fixed order. The number of shares follows from the vocabulary alone and the tile's size from the configuration, so
a row's figures are bitwise the same whatever the other rows are and however many.

It reads the weight once per group of row tiles, which stay in the L2 cache; whether that beats the library's product
followed by a pass over stored logits depends on the machine: verdict_triton.py asks it. Tensor descriptors need compute
capability 9 to be fast; older GPUs keep to stored logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from trainer.kernels.online_triton import (
    NOTHING,
    joined,
    joined_squares,
    merged,
    merged_squares,
    shaped,
    shrinkage,
    sound,
    store_figures,
    store_moments,
    store_second,
)
from trainer.kernels.wants import Shape, Wants, second_ratio

SHARES = 16  # of the vocabulary at most: 16 row tiles then fill the 132 processors of an H100 almost evenly
TILES_A_SHARE = 8  # at least: the joining kernel is not to outweigh the product
GROUP = 16  # row tiles that walk through the vocabulary together
ROWS = 32  # that a joining program takes
CAPABILITY = (9, 0)  # of the GPU at least
ALIGNMENT = 16  # bytes, of what a tensor descriptor points to
EMPTY = tl.constexpr(-1)  # place of a piece without any finite logit
NOWHERE = tl.constexpr(2**31 - 1)


@dataclass(frozen=True)
class Tiling:
    """Sizes of the tiles, warps a program and stages of the copy pipeline."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


TILINGS = {
    "twin": Tiling(128, 128, 64, 4, 3),  # two programs a processor: the sums of one under the product of the other
    "wide": Tiling(128, 256, 64, 8, 3),  # one program, fewer reads
    "narrow": Tiling(128, 128, 64, 8, 3),  # half the accumulators a thread leave registers for more sums
}


def tilings_for(wants: Wants) -> tuple[str, ...]:
    """Return the names of the tilings that compile without spilling much."""
    return ("narrow",) if wants.moments or wants.second is not None else ("twin", "wide")


def shares_of(vocabulary: int, tiling: Tiling) -> int:
    """Return into how many parts the vocabulary is cut: a power of two that depends on nothing else."""
    shares, tiles = 1, triton.cdiv(vocabulary, tiling.columns)
    while shares < SHARES and tiles >= 2 * shares * TILES_A_SHARE:
        shares *= 2
    return shares


def fits(hidden: Tensor, weight: Tensor, wants: Wants) -> bool:
    """Return whether the kernel covers a call: half precision, aligned rows, no figure that needs a second look."""
    aligned = weight.stride(1) == 1 and all(
        number * weight.itemsize % ALIGNMENT == 0 for number in (weight.stride(0), weight.shape[1])
    )
    exact = hidden.dtype in (torch.bfloat16, torch.float16) and hidden.dtype == weight.dtype
    return exact and aligned and weight.data_ptr() % ALIGNMENT == 0 and wants.top_p is None and wants.min_p is None


def fused_statistics(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    target: Tensor,  # [N]
    inverse: Tensor,  # [N]
    *,
    bias: Tensor | None,  # [V]
    shape: Shape,
    wants: Wants,
    tiling: Tiling,
) -> tuple[Tensor, Tensor]:
    """Return figures [F, N] and a likeliest token of each row [N], like `row_statistics` of the product."""
    count, vocabulary = len(hidden), len(weight)
    figures, argmax = inverse.new_empty(len(wants.figures), count), target.new_empty(count)
    if not count:
        return figures, argmax
    hidden = aligned(hidden)
    shares, inverse = shares_of(vocabulary, tiling), inverse.contiguous()
    ratio = inverse if wants.second is None else second_ratio(inverse, wants)
    sums = inverse.new_empty(9, shares, count)
    places = torch.empty(shares, count, dtype=torch.int32, device=hidden.device)
    flags = {"MOMENTS": wants.moments, "SECOND": wants.second is not None, "SHARES": shares}
    with torch.cuda.device_of(hidden):
        _share[(triton.cdiv(count, tiling.rows) * shares,)](
            TensorDescriptor.from_tensor(hidden, [tiling.rows, tiling.depth]),
            TensorDescriptor.from_tensor(weight, [tiling.columns, tiling.depth]),
            weight if bias is None else bias.contiguous(),
            target.contiguous(),
            inverse,
            ratio,
            sums,
            places,
            count,
            *weight.shape,
            shape.scale,
            shape.softcap or 1.0,
            BIASED=bias is not None,
            CAPPED=shape.softcap is not None,
            **flags,
            GROUP=GROUP,
            ROWS=tiling.rows,
            COLUMNS=tiling.columns,
            DEPTH=tiling.depth,
            num_warps=tiling.warps,
            num_stages=tiling.stages,
            enable_fp_fusion=True,  # the default differs between versions of Triton
        )
        _join[(triton.cdiv(count, ROWS),)](
            sums, places, ratio, figures, argmax, count, **flags, ROWS=ROWS, num_warps=1, enable_fp_fusion=True
        )
    return figures, argmax


def aligned(states: Tensor) -> Tensor:
    """Return hidden states in memory that a tensor descriptor can point to."""
    straight = states.stride(1) == 1 and states.stride(0) * states.itemsize % ALIGNMENT == 0
    return (
        states
        if straight and states.data_ptr() % ALIGNMENT == 0
        else states.clone(memory_format=torch.contiguous_format)
    )


@triton.jit
def _share(
    hidden,  # descriptor of [count, width]
    weight,  # descriptor of [vocabulary, width]
    bias,  # [vocabulary]
    target,  # [count]
    inverse,  # [count]
    ratio,  # [count]
    sums,  # [9, SHARES, count]
    places,  # [SHARES, count]
    count,
    vocabulary,
    width,
    scale,
    cap,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    MOMENTS: tl.constexpr,
    SECOND: tl.constexpr,
    SHARES: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Sums of a tile of rows over one share of the vocabulary; neighbours share the weight's tiles in the L2 cache."""
    program = tl.program_id(0)
    group = program // (GROUP * SHARES) * GROUP
    members = tl.minimum(tl.cdiv(count, ROWS) - group, GROUP)
    program = program % (GROUP * SHARES)
    start = (group + program % members) * ROWS
    share = program // members
    rows = start + tl.arange(0, ROWS)
    within = rows < count
    cool = tl.load(inverse + rows, mask=within, other=1.0)
    r = tl.load(ratio + rows, mask=within, other=1.0)
    token = tl.load(target + rows, mask=within, other=0)
    tiles = tl.cdiv(vocabulary, COLUMNS)

    zeros = tl.zeros([ROWS], tl.float32)
    largest, place, chosen = zeros + NOTHING, tl.full([ROWS], EMPTY, tl.int32), zeros
    rest, first, rest2, first2, square, square1, square2 = zeros, zeros, zeros, zeros, zeros, zeros, zeros
    for tile in range(tiles * share // SHARES, tiles * (share + 1) // SHARES):
        product = tl.zeros([ROWS, COLUMNS], tl.float32)
        for depth in range(0, width, DEPTH):
            x = hidden.load([start, depth])
            w = weight.load([tile * COLUMNS, depth])
            product = tl.dot(x, w.T, product, input_precision="ieee")
        columns = tile * COLUMNS + tl.arange(0, COLUMNS)
        if BIASED:
            product += tl.load(bias + columns, mask=columns < vocabulary, other=0.0).to(tl.float32)[None, :]
        z, _ = shaped(product, scale, cap, CAPPED)
        s = tl.where((columns < vocabulary)[None, :], z * cool[:, None], float("-inf"))
        chosen += tl.sum(tl.where(columns[None, :] == token[:, None], s, 0.0), axis=1)
        peak = tl.maximum(tl.max(s, axis=1), NOTHING)
        best = tl.min(tl.where(s == peak[:, None], columns[None, :], vocabulary), axis=1)
        winner = columns[None, :] == best[:, None]
        u = s - peak[:, None]
        e = tl.exp(u)
        u = tl.where(e > 0, u, 0.0)
        tile_rest = tl.sum(tl.where(winner, 0.0, e), axis=1)
        rest, first = joined(largest, rest, first, peak, tile_rest, tl.sum(u * e, axis=1), 1.0)
        if MOMENTS:
            tile0 = tl.sum(tl.where(winner, 0.0, e * e), axis=1)
            tile1, tile2 = tl.sum(u * e * e, axis=1), tl.sum(u * u * e * e, axis=1)
            square, square1, square2 = joined_squares(largest, square, square1, square2, peak, tile0, tile1, tile2)
        if SECOND:
            u = r[:, None] * (s - peak[:, None])
            e = tl.exp(u)
            u = tl.where(e > 0, u, 0.0)
            tile_rest = tl.sum(tl.where(winner, 0.0, e), axis=1)
            rest2, first2 = joined(largest, rest2, first2, peak, tile_rest, tl.sum(u * e, axis=1), r)
        place = tl.where(peak > largest, best, place)
        largest = tl.maximum(peak, largest)

    layer = SHARES * tl.cast(count, tl.int64)
    sums += share * tl.cast(count, tl.int64) + rows
    tl.store(places + share * tl.cast(count, tl.int64) + rows, place, mask=within)
    tl.store(sums, largest, mask=within)
    tl.store(sums + layer, chosen, mask=within)
    tl.store(sums + 2 * layer, rest, mask=within)
    tl.store(sums + 3 * layer, first, mask=within)
    if MOMENTS:
        tl.store(sums + 4 * layer, square, mask=within)
        tl.store(sums + 5 * layer, square1, mask=within)
        tl.store(sums + 6 * layer, square2, mask=within)
    if SECOND:
        tl.store(sums + 7 * layer, rest2, mask=within)
        tl.store(sums + 8 * layer, first2, mask=within)


@triton.jit
def _join(
    sums,  # [9, SHARES, count]
    places,  # [SHARES, count]
    ratio,  # [count]
    figures,  # [F, count]
    argmax,  # [count]
    count,
    MOMENTS: tl.constexpr,
    SECOND: tl.constexpr,
    SHARES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Figures of some rows from the sums of their shares, always in the same order."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    within = rows < count
    wide = tl.cast(count, tl.int64)
    layer = SHARES * wide
    cells = tl.arange(0, SHARES)[:, None] * wide + rows[None, :]
    there = (tl.arange(0, SHARES)[:, None] < SHARES) & within[None, :]
    largest = tl.load(sums + cells, mask=there, other=NOTHING)
    place = tl.load(places + cells, mask=there, other=EMPTY)
    chosen = tl.sum(tl.load(sums + layer + cells, mask=there, other=0.0), axis=0)
    rest = tl.load(sums + 2 * layer + cells, mask=there, other=0.0)
    first = tl.load(sums + 3 * layer + cells, mask=there, other=0.0)

    peak = tl.max(largest, axis=0)
    best = tl.min(tl.where(largest == peak[None, :], place, NOWHERE), axis=0)
    winner = place == best[None, :]
    factor, distance = shrinkage(largest, peak[None, :], 1.0)
    rest, first = merged(rest, first, factor, distance, winner, 0)
    top, rest = sound(peak, rest)
    chosen -= top
    tl.store(argmax + rows, tl.where((best > EMPTY) & (best < NOWHERE), best, 0), mask=within)
    figures += rows
    log_sum, mean = store_figures(figures, count, within, top, chosen, rest, first)
    figures += 5 * count
    if MOMENTS:
        square = tl.load(sums + 4 * layer + cells, mask=there, other=0.0)
        square1 = tl.load(sums + 5 * layer + cells, mask=there, other=0.0)
        square2 = tl.load(sums + 6 * layer + cells, mask=there, other=0.0)
        from_log = distance - log_sum[None, :]
        zeroth, linear, _ = merged_squares(square, square1, square2, factor, from_log, 0)
        from_mean = distance - mean[None, :]
        _, _, gain = merged_squares(square, square1, square2, factor, from_mean, 0)
        store_moments(figures, count, within, rest, zeroth, linear, gain)
        figures += 3 * count
    if SECOND:
        rest2 = tl.load(sums + 7 * layer + cells, mask=there, other=0.0)
        first2 = tl.load(sums + 8 * layer + cells, mask=there, other=0.0)
        r = tl.load(ratio + rows, mask=within, other=1.0)
        factor2, distance2 = shrinkage(largest, peak[None, :], r[None, :])
        rest2, first2 = merged(rest2, first2, factor2, distance2, winner, 0)
        store_second(figures, count, within, r * chosen, rest2, first2)
