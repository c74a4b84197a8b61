"""Rarer statistics of softmax(logits / temperature), computed only where an objective reads them.

A second pass over the head, a few rows of logits at a time. It is plain torch: the differentiable ones recompute their
chunk in the backward pass, so [N, V] logits never exist here either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.kernels.chunked import row_chunks

REMOVED = -1e4  # logit of a token that min-p takes away, as in the reference code
TOP = 5


def _max_logprob(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return torch.log_softmax(z / heat, -1).amax(-1)


def _mean_logit(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return (z / heat).mean(-1)


def _logsumexp(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return torch.logsumexp(z / heat, -1)


def _token_logit(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return z.gather(1, target[:, None]).squeeze(1)


def _top5_prob(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return torch.softmax(z / heat, -1).topk(min(TOP, z.shape[1]), -1).values.sum(-1) / TOP


def _tempered_logprob(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return _token_logit(torch.log_softmax(z / options["second_temperature"], -1), target, heat, options)


def _tempered_entropy(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    logp = torch.log_softmax(z / options["second_temperature"], -1)
    return -(logp.exp() * logp.clamp(min=REMOVED)).sum(-1)


def _kept_logprob(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    p = torch.softmax(z / heat, -1)
    kept = p >= options["min_p"] * p.amax(-1, keepdim=True)
    logits = torch.where(kept, z / heat, REMOVED)
    return _token_logit(torch.log_softmax(logits, -1), target, heat, options)


def _nucleus_entropy(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    """SIREN (2509.25133): tokens strictly before the cumulative mass reaches top_p; none left gives 0."""
    p = torch.softmax(z / heat, -1)
    ordered, places = p.sort(-1, descending=True)
    mass = ordered.detach().cumsum(-1)
    before = mass - ordered.detach() if options.get("nucleus_crossing") else mass
    kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, places, before < options["top_p"])
    chosen = torch.where(kept, p, 0)
    q = chosen / (chosen.sum(-1, keepdim=True) + 1e-12)
    return -(q * (q + 1e-12).log()).sum(-1)


Statistic = Callable[[Tensor, Tensor, Tensor, Mapping[str, Any]], Tensor]
EXTRAS: dict[str, Statistic] = {
    "max_logprob": _max_logprob,
    "mean_logit": _mean_logit,
    "logsumexp": _logsumexp,
    "token_logit": _token_logit,
    "top5_prob": _top5_prob,
    "tempered_logprob": _tempered_logprob,
    "tempered_entropy": _tempered_entropy,
    "kept_logprob": _kept_logprob,
    "nucleus_entropy": _nucleus_entropy,
}


def linear_extras(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    target: Tensor,  # [N]
    *,
    names: list[str],
    options: Mapping[str, Any],
    temperature: float,
    bias: Tensor | None = None,  # [V]
    chunk_bytes: int,
) -> dict[str, Tensor]:
    """Return the named statistics, [N] each, float32 at least; differentiable where `hidden` is.

    `options` holds second_temperature (of the raw logits), min_p and top_p where a statistic reads them.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    heat = torch.as_tensor(temperature, device=hidden.device, dtype=wide)

    def chunk(states: Tensor, head: Tensor, shift: Tensor | None, target: Tensor) -> tuple[Tensor, ...]:
        logits = states.to(wide) @ head.to(wide).T
        logits = logits if shift is None else logits + shift.to(wide)
        return tuple(EXTRAS[name](logits, target, heat, options) for name in names)

    parts = []
    for rows in row_chunks(len(target), weight.shape[0], wide.itemsize, chunk_bytes):
        inputs = hidden[rows], weight, bias, target[rows]
        parts.append(checkpoint(chunk, *inputs, use_reentrant=False) if torch.is_grad_enabled() else chunk(*inputs))
    if not parts:
        return {name: hidden.new_zeros(0, dtype=wide) for name in names}
    return {name: torch.cat(columns) for name, columns in zip(names, zip(*parts, strict=True), strict=True)}


@torch.no_grad()
def gradient_features(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    target: Tensor,  # [N]
    owner: Tensor,  # [N] which of S completions
    completions: int,
    *,
    temperature: float,
    bias: Tensor | None = None,
    chunk_bytes: int,
) -> Tensor:
    """Return the mean over each completion of d logprob / d hidden = (W[y] - p W) / temperature, [S, H]."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    total = hidden.new_zeros(completions, hidden.shape[1], dtype=wide)
    head = weight.to(wide)
    for rows in row_chunks(len(target), weight.shape[0], wide.itemsize, chunk_bytes):
        logits = hidden[rows].to(wide) @ head.T
        logits = logits if bias is None else logits + bias.to(wide)
        feature = head[target[rows]] - torch.softmax(logits / temperature, -1) @ head
        total.index_add_(0, owner[rows], feature / temperature)
    return total / torch.bincount(owner, minlength=completions).clamp(min=1)[:, None]


@torch.no_grad()
def squared_hellinger(
    one: tuple[Tensor, Tensor, Tensor | None],  # hidden [N, H], weight [V, H], bias [V]
    other: tuple[Tensor, Tensor, Tensor | None],
    *,
    temperature: float,
    chunk_bytes: int,
) -> Tensor:
    """Return 1 - sum over the vocabulary of sqrt(p q), [N], in [0, 1]."""
    wide = torch.promote_types(one[0].dtype, torch.float32)

    def logp(side: tuple[Tensor, Tensor, Tensor | None], rows: slice) -> Tensor:
        hidden, weight, bias = side
        logits = hidden[rows].to(wide) @ weight.to(wide).T
        return torch.log_softmax((logits if bias is None else logits + bias.to(wide)) / temperature, -1)

    found = [
        torch.logsumexp((logp(one, rows) + logp(other, rows)) / 2, -1)
        for rows in row_chunks(one[0].shape[0], one[1].shape[0], wide.itemsize, chunk_bytes)
    ]
    return 1 - torch.cat(found).exp().clamp(max=1) if found else one[0].new_zeros(0, dtype=wide)
