"""Contract C: a per-token loss taken inside the operator, so that no logit is computed twice.

A chunk's logits give its statistics, a closure turns these into losses, autograd gives d loss / d statistics, and the
logits are overwritten with their gradient while they are at hand: three products instead of four, in constant memory.
It is valid for losses of a token that depend on that token alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.kernels.backward import Gradients, Operands, add_rows_
from trainer.kernels.chunked import exact, figures_of, live_rows
from trainer.kernels.chunks import Buffer, parts
from trainer.kernels.products import logits_
from trainer.kernels.stats import TokenStats
from trainer.kernels.task import Task, token_stats
from trainer.kernels.wants import row_scalars

Loss = Callable[[TokenStats, Tensor], Tensor]
MOVES = 16  # blocks in which the rows of a chunk move together


def token_loss(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    target: Tensor,  # [N] int64
    inverse: Tensor,  # [N] 1 / temperature, wide
    bias: Tensor | None,  # [V]
    loss: Loss,
    task: Task,
    weight_grad: Tensor | None = None,  # [V, H] wide
) -> tuple[Tensor, TokenStats]:
    """Return the sum of the losses and the detached statistics."""
    learning = torch.is_grad_enabled() and any(
        operand.requires_grad for operand in (hidden, weight, bias) if operand is not None
    )
    with exact(hidden):
        if learning:
            weight = weight if weight_grad is None else weight.detach()
            total, figures, argmax = LinearTokenLoss.apply(
                hidden, weight, bias, target, inverse, loss, task, weight_grad
            )
        else:
            figures, argmax = figures_of(hidden, weight, target, inverse, bias, task)
            stats = token_stats(dict(zip(task.wants.figures, figures.unbind(0), strict=True)), argmax)
            total = checked(loss(stats, torch.arange(len(hidden), device=hidden.device)), len(hidden)).sum()
    return total, token_stats(dict(zip(task.wants.figures, figures.unbind(0), strict=True)), argmax)


class LinearTokenLoss(torch.autograd.Function):
    """hidden, weight, bias to the sum of per-token losses; the gradients are there before the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        inverse: Tensor,
        loss: Loss,
        task: Task,
        weight_grad: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = Operands(hidden.detach(), weight.detach(), bias, target, inverse, ctx.needs_input_grad[:3])
        size, buffer, total = task.rows(len(hidden), len(weight), given.wide), Buffer(inverse), inverse.new_zeros(())
        out = Gradients.of(given, weight.dtype if size >= len(hidden) else given.wide)
        if weight_grad is not None:
            out.weight, out.started = weight_grad, True
        figures, argmax = inverse.new_empty(len(task.wants.figures), len(hidden)), target.new_empty(len(hidden))
        for rows in parts(len(hidden), size):
            logits = logits_(buffer.of(rows.stop - rows.start, len(weight)), given.hidden[rows], given.weight)
            figures[:, rows], argmax[rows] = task.statistics(logits, target[rows], inverse[rows], bias)
            here = dict(zip(task.wants.figures, figures[:, rows].unbind(0), strict=True))
            value, gradients = slopes(loss, here, argmax[rows], rows, task)
            total += value
            _add_live(out, given, rows, logits, here, gradients, task)
        if weight_grad is not None:
            out.weight = None  # it is where it belongs
        ctx.found = out.finished(given)
        ctx.mark_non_differentiable(figures, argmax)
        ctx.set_materialize_grads(False)
        return total, figures, argmax

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_total: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.found is None:
            raise RuntimeError(
                "the gradients of linear_token_loss were handed over already; call it again, or use "
                "linear_logprob_entropy to differentiate twice through one forward pass"
            )
        found, ctx.found = ctx.found, None
        if g_total is None:
            return (None,) * 8
        if g_total.is_cuda or g_total != 1:  # asking CUDA would wait for it
            found = tuple(None if gradient is None else gradient.mul_(g_total) for gradient in found)
        return *found, None, None, None, None, None


def slopes(
    loss: Loss, figures: dict[str, Tensor], argmax: Tensor, rows: slice, task: Task
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the sum of a chunk's losses and its gradient by each differentiable figure."""
    names = task.wants.differentiable
    with torch.enable_grad():
        leaves = [figures[name].clone().requires_grad_() for name in names]
        stats = token_stats(figures | dict(zip(names, leaves, strict=True)), argmax)
        numbers = torch.arange(rows.start, rows.stop, device=argmax.device)
        total = checked(loss(stats, numbers), rows.stop - rows.start).sum()
        if not total.requires_grad:
            return total, dict.fromkeys(names)
        found = torch.autograd.grad(total, leaves, allow_unused=True)
    return total.detach(), dict(zip(names, found, strict=True))


def checked(losses: Tensor, count: int) -> Tensor:
    """Return the losses; raises ValueError where they are not one a token."""
    if losses.shape != (count,):
        raise ValueError(
            f"loss returned shape {tuple(losses.shape)} for {count} tokens; it must return one number for each"
        )
    return losses


def _add_live(
    out: Gradients,
    given: Operands,
    rows: slice,
    logits: Tensor,
    figures: dict[str, Tensor],
    gradients: dict[str, Tensor | None],
    task: Task,
) -> None:
    """Add the gradients of the rows of a chunk that have any, moved together at its beginning."""
    live = live_rows(list(gradients.values()), given.target)
    if not len(live):
        return
    scalars = row_scalars(figures, gradients, given.inverse[rows], task.wants)
    if len(live) == len(logits):
        return add_rows_(out, given, rows, logits, scalars, task)
    for block in parts(len(live), max(1, len(logits) // MOVES)):  # upwards: no row is overwritten before it is read
        logits[block] = logits.index_select(0, live[block])
    add_rows_(out, given, live + rows.start, logits[: len(live)], scalars[:, live], task)
