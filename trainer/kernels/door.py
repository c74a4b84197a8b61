"""linear_logprob_entropy: checks its operands once and chooses the room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from trainer.kernels.chunked import chunked
from trainer.kernels.reference import reference
from trainer.kernels.stats import TokenStats

Room = Literal["auto", "reference", "chunked"]
ROOMS: dict[str, Callable[..., TokenStats]] = {"reference": reference, "chunked": chunked}
CHUNK_BYTES = 64 * 2**20  # bytes of [rows, V] arrays alive at once


def linear_logprob_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,
    room: Room = "auto",
    moments: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> TokenStats:
    """Return log-prob of `target` and exact entropy under softmax((hidden @ weight.T + bias) / temperature).

    hidden [N, H], weight [V, H], target [N] integers in [0, V), bias [V], temperature a number or [N], above 0.
    Log-prob and entropy carry gradients to hidden, weight and bias; -inf in the bias bans tokens. Statistics are
    float32 for bfloat16 and float16 operands, float64 for float64. Raises ValueError where shapes or temperature do
    not fit.
    """
    _check(hidden, weight, target, bias, chunk_bytes)
    heat = torch.as_tensor(temperature, device=hidden.device, dtype=torch.promote_types(hidden.dtype, torch.float32))
    if heat.ndim and heat.shape != target.shape:
        raise ValueError(
            f"temperature has shape {tuple(heat.shape)}; give a number or one for each of {len(target)} rows"
        )
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it divides the logits and must be above 0")
    if room not in ("auto", *ROOMS):
        raise ValueError(f"there is no room {room!r}; choose auto or one of {', '.join(ROOMS)}")
    compute = ROOMS["chunked" if room == "auto" else room]
    return compute(hidden, weight, target.long(), temperature=heat, bias=bias, moments=moments, chunk_bytes=chunk_bytes)


def _check(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, chunk_bytes: int) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} do not fit; expected [N, H] and [V, H]"
        )
    if target.shape != hidden.shape[:1]:
        raise ValueError(f"target has shape {tuple(target.shape)}; expected one token for each of {len(hidden)} rows")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected [{weight.shape[0]}]")
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes is {chunk_bytes}; it must be at least 1")
