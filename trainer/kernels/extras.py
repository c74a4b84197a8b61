"""Statistics by the names that objectives use, and two quantities that compare or differentiate distributions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.kernels.chunks import chunk_bytes_of, fitting, parts
from trainer.kernels.definitions import EXTRAS
from trainer.kernels.door import linear_logprob_entropy, linear_token_loss
from trainer.kernels.products import logits_
from trainer.kernels.rooms import RoomName
from trainer.kernels.rows import tempered
from trainer.kernels.stats import TokenStats
from trainer.kernels.task import wide_of
from trainer.kernels.wants import Shape

Side = tuple[Tensor, Tensor, Tensor | None]  # hidden [N, H], weight [V, H], bias [V]
MOMENTS = ("sum_p2", "sum_p2_logp", "entropy_gain")
OPTIONS = {
    "tempered_logprob": "second_temperature",
    "tempered_entropy": "second_temperature",
    "kept_mass": "min_p",
    "kept_logprob": "min_p",
    "nucleus_entropy": "top_p",
}
FIELDS: dict[str, Callable[[TokenStats, float | Tensor], Tensor | None]] = {
    "logprob": lambda stats, heat: stats.logprob,
    "entropy": lambda stats, heat: stats.entropy,
    "sum_p2": lambda stats, heat: stats.sum_p2,
    "sum_p2_logp": lambda stats, heat: stats.sum_p2_logp,
    "entropy_gain": lambda stats, heat: stats.entropy_gain,
    "max_logprob": lambda stats, heat: stats.max_logit - stats.lse,
    "logsumexp": lambda stats, heat: stats.lse,
    "token_logit": lambda stats, heat: (stats.logprob.detach() + stats.lse) * heat,
    "tempered_logprob": lambda stats, heat: stats.logprob2,
    "tempered_entropy": lambda stats, heat: stats.entropy2,
    "kept_mass": lambda stats, heat: stats.kept_mass,
    "kept_logprob": lambda stats, heat: stats.kept_logprob,
    "nucleus_entropy": lambda stats, heat: stats.nucleus_entropy,
}


def linear_extras(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    target: Tensor,  # [N]
    *,
    names: Collection[str],
    options: Mapping[str, Any],
    temperature: float | Tensor,
    bias: Tensor | None = None,  # [V]
    logit_scale: float = 1.0,
    softcap: float | None = None,
    room: RoomName = "auto",
    keep_bytes: int = 0,
    chunk_bytes: int | None = None,
) -> dict[str, Tensor]:
    """Return the named statistics, [N] each, float32 at least: those of TokenStats and EXTRAS, from one sweep.

    `options` holds second_temperature (of the raw logits), min_p, top_p and nucleus_crossing where a statistic reads
    them. What TokenStats says carries a gradient. Two names are no row sums of a pass that knows only a row's maximum:
    mean_logit weighs the whole vocabulary alike and is had from the mean row of the weight (no sweep, but for a
    soft-cap), and top5_prob has to select, so it costs a sweep of its own.
    """
    wanted: dict[str, Any] = {option: options[option] for name, option in OPTIONS.items() if name in names}
    found: dict[str, Tensor] = {}
    head: dict[str, Any] = {"bias": bias, "temperature": temperature, "logit_scale": logit_scale, "softcap": softcap}
    if any(name in FIELDS for name in names):
        stats = linear_logprob_entropy(
            hidden, weight, target, **head, **wanted,
            moments=not set(MOMENTS).isdisjoint(names),
            nucleus_crossing=bool(options.get("nucleus_crossing")),
            room=room, keep_bytes=keep_bytes, chunk_bytes=chunk_bytes,
        )  # fmt: skip
        fields = {name: FIELDS[name](stats, temperature) for name in names if name in FIELDS}
        found = {name: value for name, value in fields.items() if value is not None}
    if "mean_logit" in names and softcap is None:
        found["mean_logit"] = _mean_logit(hidden, weight, bias) * logit_scale / temperature
    rest = [name for name in names if name not in found]
    if rest:
        shape = Shape(logit_scale, softcap)
        found |= _swept(hidden, weight, target, bias, rest, options, temperature, shape, chunk_bytes)
    return {name: found[name] for name in names}


@torch.no_grad()
def _mean_logit(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    wide = wide_of(hidden)
    mean = hidden.to(wide) @ weight.mean(0, dtype=wide)
    return mean if bias is None else mean + bias.mean(dtype=wide)


@torch.no_grad()
def _swept(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    names: list[str],
    options: Mapping[str, Any],
    temperature: float | Tensor,
    shape: Shape,
    chunk_bytes: int | None,
) -> dict[str, Tensor]:
    """Return statistics by their definitions, a few rows of logits at a time; detached."""
    heat = torch.as_tensor(temperature, device=hidden.device, dtype=wide_of(hidden)).expand(len(hidden))
    found = hidden.new_empty(len(names), len(hidden), dtype=wide_of(hidden))
    for rows in _chunks(hidden, weight, chunk_bytes):
        z = _logits((hidden, weight, bias), rows, shape)
        for values, name in zip(found, names, strict=True):
            values[rows] = EXTRAS[name](z, target[rows].long(), heat[rows, None], options)
    return dict(zip(names, found, strict=True))


def gradient_features(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    target: Tensor,  # [N]
    owner: Tensor,  # [N] which of S completions
    completions: int,
    *,
    temperature: float,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Return the mean over each completion of d logprob / d hidden, [S, H], detached.

    Without scale and cap that is (W[y] - p W) / temperature.
    """
    with torch.enable_grad():
        states = hidden.detach().requires_grad_()
        total, _ = linear_token_loss(
            states, weight.detach(), target, lambda stats, rows: stats.logprob,
            temperature=temperature, bias=None if bias is None else bias.detach(),
            logit_scale=logit_scale, softcap=softcap, chunk_bytes=chunk_bytes,
        )  # fmt: skip
        (slope,) = torch.autograd.grad(total, states)
    mean = torch.zeros(completions, hidden.shape[1], dtype=wide_of(hidden), device=hidden.device)
    mean.index_add_(0, owner, slope.to(mean.dtype))
    return mean / torch.bincount(owner, minlength=completions).clamp(min=1)[:, None]


@torch.no_grad()
def squared_hellinger(
    one: Side,
    other: Side,
    *,
    temperature: float,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Return 1 - sum over the vocabulary of sqrt(p q), [N], in [0, 1]."""
    shape = Shape(logit_scale, softcap)
    found = one[0].new_empty(len(one[0]), dtype=wide_of(one[0]))
    for rows in _chunks(one[0], one[1], chunk_bytes):
        p, q = (torch.log_softmax(_logits(side, rows, shape).div_(temperature), -1) for side in (one, other))
        found[rows] = torch.logsumexp(p.add_(q).div_(2), -1)
    return 1 - found.exp().clamp(max=1)


def _chunks(hidden: Tensor, weight: Tensor, chunk_bytes: int | None):
    """Yield slices of rows whose logits, and a few arrays of their size, fit the budget."""
    row_bytes = len(weight) * wide_of(hidden).itemsize
    budget = chunk_bytes_of(hidden.device, row_bytes) if chunk_bytes is None else chunk_bytes
    return parts(len(hidden), fitting(budget // 4, row_bytes))


def _logits(side: Side, rows: slice, shape: Shape) -> Tensor:
    hidden, weight, bias = side
    logits = hidden.new_empty(rows.stop - rows.start, len(weight), dtype=wide_of(hidden))
    return tempered(logits_(logits, hidden[rows], weight), bias, logits.new_ones(1), shape)
