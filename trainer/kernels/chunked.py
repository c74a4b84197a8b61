"""The everyday room: torch on any device, a few rows of logits at a time, its own backward.

Forward keeps three numbers a row: the largest logit m, L = log sum exp(s - m) and the entropy, where s = logits / T.
All sums are of u = s - m, so adding a constant to the logits changes nothing but rounding. Backward recomputes the
logits of the rows that have a gradient (others cost nothing) and overwrites them with

    d loss / d logits_j = (1 / T) { g_logp ([j == y] - p_j) - g_H p_j (log p_j + H) }.

A chunk has whole rows: on a CPU, slices of the vocabulary run several times slower than rows over all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.kernels.stats import TokenStats

LOWEST = -1e30  # stands for log 0 where it meets a probability of 0: 0 * LOWEST is 0, 0 * -inf is NaN
BUFFERS = 3  # [rows, V] arrays alive at once: logits, their exponentials, one product
WIDENED = 8192  # columns of the weight widened at once


def chunked(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    target: Tensor,  # [N]
    *,
    temperature: Tensor,  # [] or [N]
    bias: Tensor | None,  # [V]
    moments: bool,
    chunk_bytes: int,
) -> TokenStats:
    """Return TokenStats in row chunks whose working arrays fit `chunk_bytes`."""
    with torch.autocast(
        hidden.device.type, enabled=False
    ):  # the precision of the statistics is fixed here, not outside
        out = LinearLogprobEntropy.apply(hidden, weight, bias, target, temperature, moments, chunk_bytes)
    logprob, entropy, lse, largest, argmax, sum_p2, sum_p2_logp, entropy_gain = out
    if not moments:
        sum_p2 = sum_p2_logp = entropy_gain = None
    return TokenStats(logprob, entropy, lse, sum_p2, sum_p2_logp, entropy_gain, largest, argmax)


def row_chunks(count: int, vocabulary: int, itemsize: int, chunk_bytes: int) -> Iterator[slice]:
    """Yield slices of rows whose [rows, V] arrays fit the budget; at least one row each."""
    rows = max(1, chunk_bytes // (BUFFERS * vocabulary * itemsize))
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def product(left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """Return left @ right in `wide`; products of bfloat16 are exact there, so no rounding of the logits is added.

    CUDA keeps the accumulator; elsewhere `right` is widened, a block of columns at a time.
    """
    if left.dtype == wide and right.dtype == wide:
        return left @ right
    if left.is_cuda and left.dtype == right.dtype:
        return torch.mm(left, right, out_dtype=wide)
    left, out = left.to(wide), left.new_empty(left.shape[0], right.shape[1], dtype=wide)
    for start in range(0, right.shape[1], WIDENED):
        columns = slice(start, start + WIDENED)
        out[:, columns] = left @ right[:, columns].to(wide)
    return out


class LinearLogprobEntropy(torch.autograd.Function):
    """logits = hidden @ weight.T (+ bias), divided by temperature, to log-prob and entropy of each row."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        temperature: Tensor,
        moments: bool,
        chunk_bytes: int,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        count, vocabulary = hidden.shape[0], weight.shape[0]
        inverse = (1 / temperature.to(wide)).expand(count)
        out = hidden.new_empty(7, count, dtype=wide)
        argmax = target.new_empty(count)
        log_sums = hidden.new_empty(count, dtype=wide)
        for rows in row_chunks(count, vocabulary, wide.itemsize, chunk_bytes):
            logits = scaled_logits(hidden[rows], weight, bias, inverse[rows], wide)
            out[:, rows], log_sums[rows], argmax[rows] = row_statistics(logits, target[rows], moments=moments)
        logprob, entropy, lse, largest, sum_p2, sum_p2_logp, entropy_gain = out.unbind(0)
        ctx.save_for_backward(hidden, weight, bias, target, inverse, largest, log_sums, entropy)
        ctx.chunk_bytes = chunk_bytes
        ctx.mark_non_differentiable(lse, largest, argmax, sum_p2, sum_p2_logp, entropy_gain)
        ctx.set_materialize_grads(False)
        return logprob, entropy, lse, largest, argmax, sum_p2, sum_p2_logp, entropy_gain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_logprob: Tensor | None, g_entropy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, inverse, largest, log_sums, entropy = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = inverse.dtype
        zero = entropy.new_zeros(()).expand_as(entropy)
        g_logprob = zero if g_logprob is None else g_logprob
        g_entropy = zero if g_entropy is None else g_entropy
        d_hidden = torch.zeros_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        d_bias = weight.new_zeros(weight.shape[0], dtype=wide) if wants_bias else None
        live = torch.nonzero((g_logprob != 0) | (g_entropy != 0)).squeeze(1)  # a row without gradient adds exactly 0
        for part in row_chunks(live.shape[0], weight.shape[0], wide.itemsize, ctx.chunk_bytes):
            rows = live[part]
            states = hidden[rows]
            logp = scaled_logits(states, weight, bias, inverse[rows], wide)
            logp.sub_(largest[rows, None]).sub_(log_sums[rows, None])
            d_logits = logits_gradient(logp, target[rows], g_logprob[rows], g_entropy[rows], entropy[rows])
            d_logits *= inverse[rows, None]
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            narrow = d_logits.to(weight.dtype) if weight.is_cuda else d_logits
            if d_hidden is not None:
                d_hidden[rows] = product(narrow, weight, wide).to(hidden.dtype)
            if d_weight is not None:
                d_weight += product(narrow.T, states, wide)
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        d_bias = None if d_bias is None else d_bias.to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None


def scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, inverse: Tensor, wide: torch.dtype) -> Tensor:
    """Return logits / temperature of some rows, [rows, V], in `wide`."""
    logits = product(hidden, weight.T, wide)
    if bias is not None:
        logits += bias
    return logits.mul_(inverse[:, None])


def row_statistics(logits: Tensor, target: Tensor, *, moments: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return [7, rows] logprob, entropy, lse, max, sum p^2, sum p^2 log p, gain; log sum exp u; argmax.

    Eats `logits`.
    """
    largest, argmax = logits.max(dim=-1)
    u = logits.sub_(largest[:, None])
    u_target = u.gather(1, target[:, None]).squeeze(1)
    weights = u.exp()
    s0 = weights.sum(-1)
    u.clamp_(min=LOWEST)
    s1 = (u * weights).sum(-1)
    log_s0 = s0.log()
    entropy = log_s0 - s1 / s0
    sum_p2 = sum_p2_logp = gain = torch.zeros_like(s0)
    if moments:
        # u - log s0 + H is log p + H; summed directly, because three moments would cancel where p is near 1
        gain = (u - (log_s0 - entropy)[:, None]).mul_(weights).square_().sum(-1) / s0.square()
        weights.square_()
        q0, q1 = weights.sum(-1), weights.mul_(u).sum(-1)
        sum_p2, sum_p2_logp = q0 / s0.square(), (q1 - q0 * log_s0) / s0.square()
    rows = torch.stack([u_target - log_s0, entropy, largest + log_s0, largest, sum_p2, sum_p2_logp, gain])
    return rows, log_s0, argmax


def logits_gradient(logp: Tensor, target: Tensor, g_logprob: Tensor, g_entropy: Tensor, entropy: Tensor) -> Tensor:
    """Return d loss / d (logits / temperature), [rows, V]; eats `logp`."""
    p = logp.exp()
    slope = logp.clamp_(min=LOWEST).add_(entropy[:, None]).mul_(g_entropy[:, None]).add_(g_logprob[:, None])
    d_logits = slope.mul_(p).neg_()
    d_logits.scatter_add_(1, target[:, None], g_logprob[:, None].to(d_logits.dtype))
    return d_logits
