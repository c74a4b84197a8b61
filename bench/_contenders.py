"""Ways to get log-prob and entropy of linear logits with gradients: who takes part in bench/kernels.py.

Each takes hidden [N, H], weight [V, H], target [N] and a, b [N] and returns the loss sum(a * logprob + b * entropy),
logprob [N] and entropy [N]; None where it does not know them.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.kernels import linear_logprob_entropy, linear_token_loss

Found = tuple[Tensor, Tensor | None, Tensor | None]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Found]
CHUNK = 512  # rows, as verl has it


@dataclass(frozen=True)
class Contender:
    """`units` is how many matrix products of the whole [N, V] it makes, forward and backward."""

    name: str
    run: Loss
    units: float
    live: float = 1.0  # share of rows with a gradient
    weighted: bool = True  # whether a and b enter; else only time and memory compare


def naive(hidden: Tensor, weight: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Found:
    """Return what everybody writes first: all logits, in float32."""
    logp = torch.log_softmax((hidden @ weight.T).float(), -1)
    logprob = logp.gather(1, target[:, None]).squeeze(1)
    entropy = -(logp.exp() * logp).sum(-1)
    return (a * logprob + b * entropy).sum(), logprob, entropy


def slices(count: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))


class RowChunks(torch.autograd.Function):
    """512 rows at a time, recomputed in the backward: the design of verl's torch fallback."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for rows in slices(len(hidden)):
            logp = torch.log_softmax((hidden[rows] @ weight.T).float(), -1)
            found.append((logp.gather(1, target[rows][:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)))
        ctx.save_for_backward(hidden, weight, target)
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    @staticmethod
    def backward(ctx: Any, g_logprob: Tensor, g_entropy: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, target = ctx.saved_tensors
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for rows in slices(len(hidden)):
            logp = torch.log_softmax((hidden[rows] @ weight.T).float(), -1)
            p = logp.exp()
            entropy = -(p * logp).sum(-1, keepdim=True)
            d_logits = -g_entropy[rows][:, None] * p * (logp + entropy) - g_logprob[rows][:, None] * p
            d_logits.scatter_add_(1, target[rows][:, None], g_logprob[rows][:, None])
            d_logits = d_logits.to(weight.dtype)
            d_hidden[rows] = d_logits @ weight
            d_weight += d_logits.T @ hidden[rows]
        return d_hidden, d_weight, None


def row_chunks(hidden: Tensor, weight: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Found:
    logprob, entropy = RowChunks.apply(hidden, weight, target)
    return (a * logprob + b * entropy).sum(), logprob, entropy


def contract_a(hidden: Tensor, weight: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Found:
    """Return ours, logits recomputed in the backward."""
    stats = linear_logprob_entropy(hidden, weight, target)
    return (a * stats.logprob + b * stats.entropy).sum(), stats.logprob, stats.entropy


def contract_b(hidden: Tensor, weight: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Found:
    """Return ours, logits kept between the passes."""
    stats = linear_logprob_entropy(hidden, weight, target, keep_bytes=1 << 62)
    return (a * stats.logprob + b * stats.entropy).sum(), stats.logprob, stats.entropy


def contract_c(hidden: Tensor, weight: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Found:
    """Return ours, the loss taken while a chunk of logits is there."""
    total, stats = linear_token_loss(
        hidden, weight, target, lambda part, rows: a[rows] * part.logprob + b[rows] * part.entropy
    )
    return total, stats.logprob, stats.entropy


def live_rows_c(hidden: Tensor, weight: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Found:
    """Return contract C on the rows that have a gradient, as the trainer calls it."""
    live = ((a != 0) | (b != 0)).nonzero().squeeze(1)
    return contract_c(hidden[live], weight, target[live], a[live], b[live])[0], None, None


def compiled() -> tuple[Loss | None, str]:
    """Return torch.compile of the naive way, or why there is none."""
    if torch.cuda.is_available():
        return torch.compile(naive, dynamic=False), ""
    if not (shutil.which("g++") or shutil.which("clang++")):
        return None, "torch.compile needs a C++ compiler on a CPU, and none was found"
    return torch.compile(naive, dynamic=False), ""


def liger() -> tuple[Loss | None, str]:
    """Return Liger's linear + log-prob + entropy, or why there is none; off Hopper it is its own torch fallback."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None, "liger-kernel is not installed (pip install --no-deps liger-kernel)"
    if importlib.util.find_spec("triton") is None:
        return None, "liger-kernel needs triton to be imported"
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    def run(hidden: Tensor, weight: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Found:
        nll, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(
            hidden, weight, target, 1.0, -100, return_entropy=True
        )
        return (b * entropy - a * nll).sum(), -nll, entropy

    return run, ""


def liger_classic() -> tuple[Loss | None, str]:
    """Return Liger's fused linear cross-entropy, which knows neither entropy nor a weight for each row."""
    if not torch.cuda.is_available():
        return None, "its Triton kernels need a GPU"
    if importlib.util.find_spec("liger_kernel") is None:
        return None, "liger-kernel is not installed (pip install --no-deps liger-kernel)"
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")

    def run(hidden: Tensor, weight: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Found:
        return loss(weight, hidden, target), None, None

    return run, ""


def contenders() -> tuple[dict[str, Contender], dict[str, str]]:
    """Return who takes part, and why others do not."""
    found = [
        Contender("naive eager", naive, 3),
        Contender("512-row chunks", row_chunks, 4),
        Contender("ours A, recompute", contract_a, 4),
        Contender("ours B, kept", contract_b, 3),
        Contender("ours C, fused loss", contract_c, 3),
        Contender("512-row chunks, 20 % of rows live", row_chunks, 4, live=0.2),
        Contender("ours A, 20 % of rows live", contract_a, 1 + 3 * 0.2, live=0.2),
        Contender("ours C, 20 % of rows live", live_rows_c, 3 * 0.2, live=0.2),
    ]
    missing = {}
    for name, make, units in (
        ("Liger, classic (no entropy)", liger_classic, 3),
        ("Liger, scaled cross-entropy", liger, 4),
        ("torch.compile of naive", compiled, 3),
    ):
        run, why = make()
        if run is None:
            missing[name] = why
        else:
            found.insert(1, Contender(name, run, units, weighted=make is not liger_classic))
    return {contender.name: contender for contender in found}, missing
