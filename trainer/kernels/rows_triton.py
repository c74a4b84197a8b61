"""The row epilogues for a GPU, in Triton: the pair of functions that rows.py describes, one program a row.

A program walks its row from left to right, so a row's result depends on nothing but that row and the vocabulary's
size: repeats are bitwise equal, whatever the number of rows. No atomics, no tuning at run time.

Statistics read the row once (twice with min-p, whose cut needs the maximum). The gradient reads it once and may write
bfloat16 or float16 over the memory it has just read. Statistics that sort a row (the nucleus), and float64, are left to
rows.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.kernels import rows
from trainer.kernels.online_triton import (
    NOTHING,
    grown,
    grown_squares,
    merged,
    merged_squares,
    shaped,
    shrinkage,
    sound,
    store_figures,
    store_moments,
    store_second,
)
from trainer.kernels.wants import REMOVED, Shape, Wants, second_ratio

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1 at import: on a CPU, slowly, for tests
REMOVED_LOGIT = tl.constexpr(REMOVED)
WARPS = 4


def row_statistics(
    logits: Tensor, target: Tensor, inverse: Tensor, *, bias: Tensor | None, shape: Shape, wants: Wants
) -> tuple[Tensor, Tensor]:
    """Return figures [F, n] and a likeliest token of each row [n]; see the head of rows.py."""
    if wants.top_p is not None or logits.dtype == torch.float64:
        return rows.row_statistics(logits, target, inverse, bias=bias, shape=shape, wants=wants)
    figures = inverse.new_empty(len(wants.figures), len(logits))
    argmax = target.new_empty(len(logits))
    if len(logits) == 0:
        return figures, argmax
    inverse = inverse.contiguous()
    ratio = inverse if wants.second is None else second_ratio(inverse, wants)
    heavy = wants.moments or wants.second is not None
    with torch.cuda.device_of(logits):
        _statistics[(len(logits),)](
            logits,
            logits.stride(0),
            *logits.shape,
            logits if bias is None else bias.contiguous(),
            target.contiguous(),
            inverse,
            ratio,
            figures,
            argmax,
            shape.scale,
            shape.softcap or 1.0,
            max(wants.kept_cut, -1e30),
            BIASED=bias is not None,
            CAPPED=shape.softcap is not None,
            MOMENTS=wants.moments,
            SECOND=wants.second is not None,
            KEPT=wants.min_p is not None,
            BLOCK=block(logits.shape[1], heavy=heavy),
            num_warps=WARPS,
            enable_fp_fusion=True,  # the default differs between versions of Triton
        )
    return figures, argmax


def logits_gradient_(
    logits: Tensor,
    target: Tensor,
    inverse: Tensor,
    scalars: Tensor,
    *,
    first: int,
    bias: Tensor | None,
    shape: Shape,
    wants: Wants,
    dtype: torch.dtype,
) -> Tensor:
    """Overwrite `logits` with d loss / d (hidden @ weight.T), rounded once to `dtype`; see the head of rows.py."""
    if logits.dtype == torch.float64:
        return rows.logits_gradient_(
            logits, target, inverse, scalars, first=first, bias=bias, shape=shape, wants=wants, dtype=dtype
        )
    out = logits.view(dtype)[:, : logits.shape[1]]
    if logits.numel() == 0:
        return out
    inverse, scalars = inverse.contiguous(), scalars.contiguous()
    with torch.cuda.device_of(logits):
        _gradient[(len(logits),)](
            logits,
            logits.stride(0),
            *logits.shape,
            first,
            logits if bias is None else bias.contiguous(),
            target.contiguous(),
            inverse,
            inverse if wants.second is None else second_ratio(inverse, wants),
            scalars,
            out,
            out.stride(0),
            shape.scale,
            shape.softcap or 1.0,
            max(wants.kept_cut, -1e30),
            BIASED=bias is not None,
            CAPPED=shape.softcap is not None,
            SECOND=wants.second is not None,
            KEPT=wants.min_p is not None,
            NUCLEUS=wants.top_p is not None,
            BLOCK=block(logits.shape[1], heavy=False),
            num_warps=WARPS,
            enable_fp_fusion=True,  # the default differs between versions of Triton
        )
    return out


def block(vocabulary: int, *, heavy: bool) -> int:
    """Return how many columns a program takes at once; more sums a lane leave registers for fewer lanes."""
    return min(triton.next_power_of_2(vocabulary), 1024 if heavy else 2048)


@triton.jit
def _loaded(logits, bias, columns, within, BIASED: tl.constexpr):
    """Return hidden @ weight.T + bias of a row at `columns`, 0 outside the vocabulary."""
    x = tl.load(logits + columns, mask=within, other=0.0).to(tl.float32)
    if BIASED:
        x += tl.load(bias + columns, mask=within, other=0.0).to(tl.float32)
    return x


@triton.jit
def _tempered(logits, bias, columns, within, scale, cap, inverse, BIASED: tl.constexpr, CAPPED: tl.constexpr):
    """Return logits / temperature of a row at `columns`, of no meaning outside the vocabulary."""
    z, _ = shaped(_loaded(logits, bias, columns, within, BIASED), scale, cap, CAPPED)
    return z * inverse


@triton.jit
def _statistics(
    logits,  # [count, vocabulary], rows `stride` apart
    stride,
    count,
    vocabulary,
    bias,  # [vocabulary]
    target,  # [count]
    inverse,  # [count]
    ratio,  # [count] second_ratio
    figures,  # [F, count]
    argmax,  # [count]
    scale,
    cap,
    kept_cut,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    MOMENTS: tl.constexpr,
    SECOND: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    figures += row
    cool = tl.load(inverse + row)
    r = tl.load(ratio + row)
    lanes = tl.arange(0, BLOCK)
    zeros = tl.zeros([BLOCK], tl.float32)
    largest, place = zeros + NOTHING, lanes * 0
    rest, mean, rest2, mean2, square, square1, square2 = zeros, zeros, zeros, zeros, zeros, zeros, zeros
    for start in range(0, vocabulary, BLOCK):
        columns = start + lanes
        s = _tempered(logits, bias, columns, columns < vocabulary, scale, cap, cool, BIASED, CAPPED)
        s = tl.where(columns < vocabulary, s, float("-inf"))
        higher = s > largest
        gap = tl.abs(s - largest)
        share = tl.exp(-gap)
        rest, mean = grown(rest, mean, gap, share, higher)
        if MOMENTS:
            square, square1, square2 = grown_squares(square, square1, square2, gap, share, higher)
        if SECOND:
            rest2, mean2 = grown(rest2, mean2, r * gap, tl.exp(-r * gap), higher)
        largest = tl.where(higher, s, largest)
        place = tl.where(higher, columns, place)

    top = tl.max(largest, axis=0)
    best = tl.min(tl.where(largest == top, place, vocabulary), axis=0)
    winner = place == best
    factor, distance = shrinkage(largest, top, 1.0)
    rest, first = merged(rest, mean, factor, distance, winner, 0)
    top, rest = sound(top, rest)
    token = tl.load(target + row)
    chosen = _tempered(logits, bias, token, token < vocabulary, scale, cap, cool, BIASED, CAPPED) - top
    tl.store(argmax + row, best)
    log_sum, mean = store_figures(figures, count, row < count, top, chosen, rest, first)
    figures += 5 * count
    if MOMENTS:
        zeroth, linear, _ = merged_squares(square, square1, square2, factor, distance - log_sum, 0)
        _, _, gain = merged_squares(square, square1, square2, factor, distance - mean, 0)
        store_moments(figures, count, row < count, rest, zeroth, linear, gain)
        figures += 3 * count
    if SECOND:
        factor2, distance2 = shrinkage(largest, tl.max(largest, axis=0), r)
        rest2, first2 = merged(rest2, mean2, factor2, distance2, winner, 0)
        store_second(figures, count, row < count, r * chosen, rest2, first2)
        figures += 3 * count
    if KEPT:
        inside = zeros
        for start in range(0, vocabulary, BLOCK):
            columns = start + lanes
            s = _tempered(logits, bias, columns, columns < vocabulary, scale, cap, cool, BIASED, CAPPED)
            u = s - top
            inside += tl.where((columns < vocabulary) & (u >= kept_cut), tl.exp(u), 0.0)
        mass = tl.sum(inside, axis=0)
        stays = chosen >= kept_cut
        tl.store(figures, mass / (1 + rest))
        tl.store(figures + count, tl.where(stays, chosen, REMOVED_LOGIT - top) - tl.log(mass))
        tl.store(figures + 2 * count, stays.to(tl.float32))


@triton.jit
def _gradient(
    logits,  # [count, width], rows `stride` apart
    stride,
    count,
    width,
    first,  # the vocabulary's index of column 0
    bias,  # [width]
    target,  # [count]
    inverse,  # [count]
    ratio,  # [count]
    scalars,  # [S, count]
    out,  # [count, width], may be the same memory
    out_stride,
    scale,
    cap,
    kept_cut,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    SECOND: tl.constexpr,
    KEPT: tl.constexpr,
    NUCLEUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    out += row * out_stride
    scalars += row
    cool = tl.load(inverse + row)
    place = tl.load(target + row) - first
    top, log_sum, hot = tl.load(scalars), tl.load(scalars + count), tl.load(scalars + 2 * count)
    a0, a1 = tl.load(scalars + 3 * count), tl.load(scalars + 4 * count)
    scalars += 5 * count
    if SECOND:
        r = tl.load(ratio + row)
        log_sum2, b0, b1 = tl.load(scalars), tl.load(scalars + count), tl.load(scalars + 2 * count)
        scalars += 3 * count
    if KEPT:
        kept = tl.load(scalars)
        scalars += count
    if NUCLEUS:
        cut, inside0, inside1 = tl.load(scalars), tl.load(scalars + count), tl.load(scalars + 2 * count)
    lanes = tl.arange(0, BLOCK)
    for start in range(0, width, BLOCK):
        columns = start + lanes
        within = columns < width
        z, slope = shaped(_loaded(logits, bias, columns, within, BIASED), scale, cap, CAPPED)
        u = z * cool - top
        logp = u - log_sum
        p = tl.exp(logp)
        logp = tl.where(p > 0, logp, 0.0)
        factor = a0 + a1 * logp
        if KEPT:
            factor += tl.where(u >= kept_cut, kept, 0.0)
        if NUCLEUS:
            factor += tl.where(u >= cut, inside0 + inside1 * logp, 0.0)
        d = p * factor + tl.where(columns == place, hot, 0.0)
        if SECOND:
            logp2 = r * u - log_sum2
            p2 = tl.exp(logp2)
            d += p2 * (b0 + b1 * tl.where(p2 > 0, logp2, 0.0))
        tl.debug_barrier()  # narrower results land on columns that other lanes of this block must have read
        tl.store(out + columns, (d * (slope * cool)).to(out.dtype.element_ty), mask=within)
