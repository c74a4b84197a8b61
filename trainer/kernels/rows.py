"""The row epilogues in torch: logits of some rows to figures, and logits to their gradient, in place.

A room is a driver (GEMMs, chunks, autograd: the same for all) and two functions. This file is the everyday room's
pair and the interface the others keep:

    row_statistics(logits, target, inverse, *, bias, shape, wants) -> (figures [F, n], argmax [n])
        reads `logits` = hidden @ weight.T of n rows over the whole vocabulary, [n, V] in the wide dtype, rows
        contiguous, and leaves them as they are. Figures are stacked in the order of `wants.figures`.
    logits_gradient_(logits, target, inverse, scalars, *, first, bias, shape, wants, dtype) -> gradient [n, v]
        overwrites `logits`, the columns [first, first + v) of the same product, with d loss / d (hidden @ weight.T).
        `target` counts from the first column of the vocabulary and may lie outside the slice; `bias` is the slice's.
        `scalars` comes from `wants.row_scalars`. The result has `dtype`, that of the following products, and lies in
        the memory of `logits`: where it is narrower, at the beginning of each row. Rows without any gradient are
        never passed.

Work goes through blocks of rows small enough for the cache; on a GPU a block is most of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.kernels.wants import LOWEST, REMOVED, Shape, Wants, second_ratio

BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**27}  # of one [rows, V] scratch array
GROUP = 64  # columns compared at once to find the largest
TOP = 256  # tokens looked at before a row is sorted for its nucleus


def row_statistics(
    logits: Tensor, target: Tensor, inverse: Tensor, *, bias: Tensor | None, shape: Shape, wants: Wants
) -> tuple[Tensor, Tensor]:
    """Return figures [F, n] and a likeliest token of each row [n]; see the head of this file."""
    figures = inverse.new_empty(len(wants.figures), len(logits))
    argmax = target.new_empty(len(logits))
    for rows in blocks(logits):
        s = tempered(logits[rows], bias, inverse[rows, None], shape)
        found, argmax[rows] = _block_statistics(s, target[rows, None], inverse[rows], wants, banned=bias is not None)
        figures[:, rows] = torch.stack([found[name] for name in wants.figures])
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
    """Overwrite `logits` with d loss / d (hidden @ weight.T) and return it; see the head of this file."""
    gradient = logits if dtype == logits.dtype else logits.view(dtype)[:, : logits.shape[1]]
    for rows in blocks(logits):
        x, out, factor = logits[rows], gradient[rows], inverse[rows, None] * shape.scale
        coefficients = dict(zip(wants.scalars, scalars[:, rows, None], strict=True))
        inside = (target[rows] >= first) & (target[rows] < first + logits.shape[1])
        place = (target[rows] - first).clamp(0, logits.shape[1] - 1)[:, None]
        s = tempered(x, bias, inverse[rows, None], shape)
        slope = None if shape.softcap is None else s.div(inverse[rows, None] * shape.softcap).square_().neg_().add_(1)
        d = _block_gradient(s, inverse[rows, None], coefficients, wants, banned=bias is not None)
        d.scatter_add_(1, place, coefficients["hot"] * inside[:, None])
        torch.mul(d if slope is None else d.mul_(slope), factor, out=out)
    return gradient


def blocks(logits: Tensor) -> Iterator[slice]:
    """Yield slices of rows whose scratch arrays stay in the cache: a power of two of them, at least one."""
    fitting = max(1, BLOCK_BYTES.get(logits.device.type, 2**27) // max(1, logits.shape[1] * logits.itemsize))
    size = 1 << (fitting.bit_length() - 1)
    for start in range(0, len(logits), size):
        yield slice(start, min(start + size, len(logits)))


def tempered(x: Tensor, bias: Tensor | None, inverse: Tensor, shape: Shape) -> Tensor:
    """Return cap(scale (x + bias)) inverse in memory of its own."""
    if bias is None and shape.softcap is None:
        return x * (inverse * shape.scale)
    z = x.clone() if bias is None else x + bias
    if shape.softcap is None:
        return z.mul_(inverse * shape.scale)
    return z.mul_(shape.scale / shape.softcap).tanh_().mul_(inverse * shape.softcap)


def largest_of(s: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest number of each row and where it stands.

    A CPU looks for the place several times slower than for the number: it looks for a group of columns first.
    """
    width = s.shape[1] // GROUP
    if s.is_cuda or not width:
        return s.max(dim=-1)
    whole = width * GROUP
    groups = s[:, :whole].view(len(s), GROUP, width)  # a column of `width`: one group
    best, column = torch.cat([groups.amax(1), s[:, whole:]], 1).max(dim=-1)
    layer = groups.gather(2, column.clamp(max=width - 1)[:, None, None].expand(-1, GROUP, 1)).squeeze(2).argmax(1)
    return best, torch.where(column < width, layer * width + column, column - width + whole)


def _block_statistics(
    s: Tensor, target: Tensor, inverse: Tensor, wants: Wants, *, banned: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the figures of a block by name, [r] each, and argmax; eats `s`. `target` is [r, 1].

    `banned`: there may be tokens of -inf, which have to be told from 0 * inf.
    """
    largest, argmax = largest_of(s)
    u = s.sub_(largest[:, None])
    u_target = u.gather(1, target).squeeze(1)
    log_sum, mean, weights = _log_sum(u, argmax, banned=banned)
    entropy = log_sum - mean
    found = {
        "logprob": u_target - log_sum,
        "entropy": entropy,
        "lse": largest + log_sum,
        "max_logit": largest,
        "log_sum": log_sum,
    }
    if wants.top_p is not None:
        found |= _nucleus(u, weights, log_sum, wants)
    if wants.min_p is not None:
        kept = u >= wants.kept_cut
        inside = (weights * kept).sum(-1)
        target_kept = u_target >= wants.kept_cut
        found |= {
            "kept_mass": inside * (-log_sum).exp(),
            "kept_logprob": torch.where(target_kept, u_target, REMOVED - largest) - inside.log(),
            "target_kept": target_kept.to(s.dtype),
        }
    if wants.moments:
        found |= _moments(u, weights, log_sum, entropy)
    if wants.second is not None:
        ratio = second_ratio(inverse, wants)
        log_sum2, mean2, _ = _log_sum(u.mul_(ratio[:, None]), argmax, banned=banned)
        found |= {"logprob2": u_target * ratio - log_sum2, "entropy2": log_sum2 - mean2, "log_sum2": log_sum2}
    return found, argmax


def _log_sum(u: Tensor, argmax: Tensor, *, banned: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return log sum e^u, sum u e^u / sum e^u and e^u of rows whose maximum is 0; raises u to LOWEST.

    The largest term is 1 and is left out of the sum for log1p: where a token has nearly all the mass, log sum e^u is
    the mass of the others, which 1 + would round away.
    """
    weights = u.exp()
    if banned:
        u.clamp_(min=LOWEST)
    mean = torch.linalg.vecdot(u, weights)
    rest = weights.scatter_(1, argmax[:, None], 0).sum(-1)
    weights.scatter_(1, argmax[:, None], 1)
    return rest.log1p(), mean / (1 + rest), weights


def _moments(u: Tensor, weights: Tensor, log_sum: Tensor, entropy: Tensor) -> dict[str, Tensor]:
    """Return sum p^2, sum p^2 log p and sum p^2 (log p + H)^2; eats `weights`."""
    square = (2 * log_sum).exp()
    # u - log S + H is log p + H; summed directly, because three moments would cancel where p is near 1
    gain = (u - (log_sum - entropy)[:, None]).mul_(weights).square_().sum(-1) / square
    weights.square_()
    q0, q1 = weights.sum(-1), torch.linalg.vecdot(weights, u)
    return {"sum_p2": q0 / square, "sum_p2_logp": (q1 - q0 * log_sum) / square, "entropy_gain": gain}


def _nucleus(u: Tensor, weights: Tensor, log_sum: Tensor, wants: Wants) -> dict[str, Tensor]:
    """Return entropy and mass of the nucleus and a u between its last token and the next (inf where it is empty).

    SIREN (2509.25133): the likeliest tokens strictly before their cumulative mass reaches top_p; with `crossing` also
    the one at which it does. Tokens that tie with the last one inside are inside.
    """
    cut = torch.full_like(log_sum, torch.inf)
    rows, count = torch.arange(len(u), device=u.device), min(TOP, u.shape[1])
    while len(rows):
        cut[rows], unfinished = _cut(u[rows], log_sum[rows], count, wants)
        rows, count = rows[unfinished & (count < u.shape[1])], u.shape[1]
    chosen = weights * (u >= cut[:, None])
    total = chosen.sum(-1)
    entropy = (total.log() - torch.linalg.vecdot(chosen, u) / total).masked_fill(total == 0, 0)
    return {"nucleus_entropy": entropy, "nucleus_mass": total * (-log_sum).exp(), "nucleus_cut": cut}


def _cut(u: Tensor, log_sum: Tensor, count: int, wants: Wants) -> tuple[Tensor, Tensor]:
    """Return the cut of each row from its `count` likeliest tokens, and whether those were too few to tell.

    It lies half way to the next token, so that logits computed again, and rounded otherwise, choose the same set.
    """
    ordered = u.topk(count, dim=-1).values
    p = (ordered - log_sum[:, None]).exp()
    mass = p.cumsum(-1)
    assert wants.top_p is not None
    size = ((mass - p if wants.crossing else mass) < wants.top_p).sum(-1, keepdim=True)
    last = ordered.gather(1, (size - 1).clamp(min=0))
    reach = (ordered >= last).sum(-1, keepdim=True)  # with the ties
    after = ordered.gather(1, reach.clamp(max=count - 1))
    middle = torch.where(reach < count, (last + after) / 2, last - 1).maximum(last - 1)
    return torch.where(size > 0, middle, torch.inf).squeeze(1), (reach == count).squeeze(1)


def _block_gradient(s: Tensor, inverse: Tensor, row: dict[str, Tensor], wants: Wants, *, banned: bool) -> Tensor:
    """Return d loss / d s of a block without its `hot` part; eats `s`. `row` holds the scalars, [r, 1] each."""
    u = s.sub_(row["max_logit"])
    second = None if wants.second is None else _second_gradient(u, inverse, row, wants)
    inside = None if wants.top_p is None else u >= row["nucleus_cut"]
    kept = None if wants.min_p is None else u >= wants.kept_cut
    logp = u.sub_(row["log_sum"])
    p = logp.exp()
    if banned:
        logp.clamp_(min=LOWEST)
    slope = torch.addcmul(row["a0"], row["a1"], logp)
    if kept is not None:
        slope.add_(kept * row["kept0"])
    if inside is not None:
        slope.add_(inside * torch.addcmul(row["nucleus0"], row["nucleus1"], logp))
    d = slope.mul_(p)
    return d if second is None else d.add_(second)


def _second_gradient(u: Tensor, inverse: Tensor, row: dict[str, Tensor], wants: Wants) -> Tensor:
    logp = (u * second_ratio(inverse, wants)).sub_(row["log_sum2"])
    p = logp.exp()
    return torch.addcmul(row["b0"], row["b1"], logp.clamp_(min=LOWEST)).mul_(p)
