"""Sums over a softmax row that may be built in any order of pieces; device functions shared by the Triton kernels.

A piece (one lane of a row, one tile, one share of the vocabulary) keeps its largest logit m and, with u = s - m,

    rest = sum e^u without one element at m,   first = sum u e^u,
    square = sum e^2u without that element,    square1 = sum u e^2u,   square2 = sum u^2 e^2u.

Leaving the largest out keeps 1 - p of a peaked row exact: log S0 = log1p(rest), and the entropy is a sum of two terms
that are never negative. Nothing depends on a constant added to the logits.
"""

from __future__ import annotations

import triton
import triton.language as tl

NOTHING = tl.constexpr(-1.0e30)  # the maximum of a piece without any finite logit: below every logit


@triton.jit
def tanh(x):
    """Return tanh with a relative error near the rounding of float32; 1 - e^-2x would cancel near 0."""
    square = x * x
    small = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315 - square * (62 / 2835)))))
    tail = tl.exp(-2 * tl.abs(x))
    large = (1 - tail) / (1 + tail)
    return tl.where(tl.abs(x) < 0.3, small, tl.where(x < 0, -large, large))


@triton.jit
def log1p(x):
    """Return log(1 + x) for x >= 0; below 1 by the series of artanh, which does not round 1 + x."""
    s = x / (2 + x)
    t = s * s
    series = 1 / 9 + t * (1 / 11 + t * (1 / 13 + t * (1 / 15 + t * (1 / 17))))
    series = 1 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * series)))
    return tl.where(x < 1, 2 * s * series, tl.log(1 + x))


@triton.jit
def shaped(raw, scale, cap, CAPPED: tl.constexpr):
    """Return cap(scale raw), the logits before temperature, and their derivative by raw."""
    z = raw * scale
    slope = scale
    if CAPPED:
        bent = tanh(z / cap)
        z = cap * bent
        slope = scale * (1 - bent * bent)
    return z, slope


@triton.jit
def grown(rest, first, gap, share, higher):
    """Take one element a lane into (rest, first); gap = |s - m|, share = e^-gap, 0 * inf never formed.

    Where the element is `higher` than the lane's maximum, the old sums shrink and the old maximum joins them.
    """
    finite = tl.where(share > 0, gap, 0.0)
    first = tl.where(higher, share * (first - finite * (1 + rest)), first - finite * share)
    rest = tl.where(higher, share * rest, rest) + share
    return rest, first


@triton.jit
def grown_squares(square, square1, square2, gap, share, higher):
    """The same for the sums of e^2u."""
    finite = tl.where(share > 0, gap, 0.0)
    twice = share * share
    risen2 = square2 - finite * (2 * square1 - finite * (1 + square))
    square2 = tl.where(higher, twice * risen2, square2 + finite * finite * twice)
    square1 = tl.where(higher, twice * (square1 - finite * (1 + square)), square1 - finite * twice)
    square = tl.where(higher, twice * square, square) + twice
    return square, square1, square2


@triton.jit
def shrinkage(largest, top, ratio):
    """Return what pieces' sums shrink by, e^d, and d = ratio * (largest - top), 0 for empty pieces."""
    distance = ratio * (largest - top)
    factor = tl.exp(distance)
    return factor, tl.where(factor > 0, distance, 0.0)


@triton.jit
def merged(rest, first, factor, distance, winner, AXIS: tl.constexpr):
    """Return (rest, first) of all pieces along AXIS; `winner` marks the one whose maximum is left out."""
    total = tl.sum(factor * rest + tl.where(winner, 0.0, factor), axis=AXIS)
    return total, tl.sum(factor * (first + distance * (1 + rest)), axis=AXIS)


@triton.jit
def merged_squares(square, square1, square2, factor, offset, AXIS: tl.constexpr):
    """Return sums over all pieces along AXIS of e^2u, (u - c) e^2u and (u - c)^2 e^2u; offset = distance - c."""
    twice = factor * factor
    zeroth = twice * (1 + square)
    linear = twice * (square1 + offset * (1 + square))
    quadratic = twice * (square2 + offset * (2 * square1 + offset * (1 + square)))
    return tl.sum(zeroth, axis=AXIS), tl.sum(linear, axis=AXIS), tl.sum(quadratic, axis=AXIS)


@triton.jit
def joined(largest, rest, first, largest2, rest2, first2, ratio):
    """Return (rest, first) of two pieces together; equal maxima count as two elements."""
    top = tl.maximum(largest, largest2)
    factor, distance = shrinkage(largest, top, ratio)
    factor2, distance2 = shrinkage(largest2, top, ratio)
    total = factor * rest + factor2 * rest2 + tl.where(largest2 > largest, factor, factor2)
    first = factor * (first + distance * (1 + rest)) + factor2 * (first2 + distance2 * (1 + rest2))
    return total, first


@triton.jit
def joined_squares(largest, square, square1, square2, largest_b, square_b, square1_b, square2_b):
    """Return the sums of e^2u of two pieces together."""
    top = tl.maximum(largest, largest_b)
    factor, d = shrinkage(largest, top, 1.0)
    factor_b, e = shrinkage(largest_b, top, 1.0)
    factor, factor_b = factor * factor, factor_b * factor_b
    zeroth = factor * square + factor_b * square_b + tl.where(largest_b > largest, factor, factor_b)
    linear = factor * (square1 + d * (1 + square)) + factor_b * (square1_b + e * (1 + square_b))
    quadratic = factor * (square2 + d * (2 * square1 + d * (1 + square)))
    quadratic += factor_b * (square2_b + e * (2 * square1_b + e * (1 + square_b)))
    return zeroth, linear, quadratic


@triton.jit
def sound(top, rest):
    """Return (top, rest), NaN where every token is banned or something was not a number."""
    rest = tl.where(top > NOTHING, rest, float("nan"))
    return tl.where(rest == rest, top, float("nan")), rest


@triton.jit
def store_figures(figures, count, within, top, chosen, rest, first):
    """Store logprob, entropy, lse, max_logit and log_sum; chosen = u of the target. Return log_sum and mean u."""
    log_sum = log1p(rest)
    mean = first / (1 + rest)
    tl.store(figures, chosen - log_sum, mask=within)
    tl.store(figures + count, log_sum - mean, mask=within)
    tl.store(figures + 2 * count, top + log_sum, mask=within)
    tl.store(figures + 3 * count, top, mask=within)
    tl.store(figures + 4 * count, log_sum, mask=within)
    return log_sum, mean


@triton.jit
def store_moments(figures, count, within, rest, zeroth, linear, gain):
    """Store sum p^2, sum p^2 log p and sum p^2 (log p + H)^2."""
    scale = 1 / ((1 + rest) * (1 + rest))
    tl.store(figures, zeroth * scale, mask=within)
    tl.store(figures + count, linear * scale, mask=within)
    tl.store(figures + 2 * count, gain * scale, mask=within)


@triton.jit
def store_second(figures, count, within, chosen, rest, first):
    """Store log-prob, entropy and log_sum at the second temperature; chosen = u of the target there."""
    log_sum = log1p(rest)
    tl.store(figures, chosen - log_sum, mask=within)
    tl.store(figures + count, log_sum - first / (1 + rest), mask=within)
    tl.store(figures + 2 * count, log_sum, mask=within)
