"""The driver of the rooms that keep no [N, V] logits: products, chunks and autograd around the row epilogues.

The forward pass goes by rows over the whole vocabulary and keeps a few figures a row. The backward pass leaves out rows
without gradient (they cost nothing and add exactly 0), computes the logits of the others again, or takes those kept
under `keep_bytes`, and overwrites them with their gradient:

    by rows               d hidden of a row is written once, d weight accumulates: best on a CPU, where slices of the
                          vocabulary run several times slower;
    by vocabulary slices  d weight of a slice is written once, d hidden accumulates: best on CUDA, where the traffic of
                          d weight is large.

Both accumulate in the wide dtype, in a fixed order, without atomics: two runs are bitwise equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.kernels.backward import Operands, by_rows, by_slices
from trainer.kernels.chunks import INVARIANT_ROWS, Buffer, parts
from trainer.kernels.kept import Kept
from trainer.kernels.products import logits_
from trainer.kernels.stats import TokenStats
from trainer.kernels.task import Task, token_stats
from trainer.kernels.wants import row_scalars


def chunked(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    target: Tensor,  # [N] int64
    inverse: Tensor,  # [N] 1 / temperature, wide
    bias: Tensor | None,  # [V]
    task: Task,
) -> TokenStats:
    """Return TokenStats; the logits that exist at once stay within the task's budget."""
    with exact(hidden):
        if torch.is_grad_enabled():
            *found, argmax = LinearLogprobEntropy.apply(hidden, weight, bias, target, inverse, task)
        else:
            figures, argmax = figures_of(hidden, weight, target, inverse, bias, task)
            found = list(figures.unbind(0))
    return token_stats(dict(zip(task.wants.figures, found, strict=True)), argmax)


def exact(hidden: Tensor) -> torch.autocast:
    """Return a context in which autocast narrows no product: the precision is decided here, not outside."""
    return torch.autocast(hidden.device.type, enabled=False)


def figures_of(
    hidden: Tensor, weight: Tensor, target: Tensor, inverse: Tensor, bias: Tensor | None, task: Task
) -> tuple[Tensor, Tensor]:
    """Return figures [F, N] and argmax [N] of a call without gradient, by the room's own forward where it has one."""
    if task.room.forward is not None and not task.invariant:
        found = task.room.forward(hidden, weight, target, inverse, bias=bias, shape=task.shape, wants=task.wants)
        if found is not None:
            return found
    return sweep(hidden, weight, target, inverse, bias, task, None)


def sweep(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    inverse: Tensor,
    bias: Tensor | None,
    task: Task,
    kept: Kept | None,
) -> tuple[Tensor, Tensor]:
    """Return figures [F, N] and argmax [N]; fills `kept`."""
    figures, argmax = inverse.new_empty(len(task.wants.figures), len(hidden)), target.new_empty(len(hidden))
    size, stored = task.rows(len(hidden), len(weight), inverse.dtype), 0 if kept is None else len(kept)
    buffer = Buffer(inverse)
    for rows in (*parts(stored, size), *parts(len(hidden), size, start=stored)):
        states, tokens, cool = hidden[rows], target[rows], inverse[rows]
        count = len(states)
        if task.invariant:
            states, tokens, cool = (padded(part, INVARIANT_ROWS) for part in (states, tokens, cool))
        keep = kept if rows.start < stored else None
        logits = keep.memory(rows) if keep is not None else None
        logits = logits_(buffer.of(len(states), len(weight)) if logits is None else logits, states, weight)
        found, best = task.statistics(logits, tokens, cool, bias)
        figures[:, rows], argmax[rows] = found[:, :count], best[:count]
        if keep is not None:
            keep.store(rows, logits, argmax[rows])
    return figures, argmax


def padded(rows: Tensor, count: int) -> Tensor:
    """Return `rows` with zeros after them, `count` in all."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


class LinearLogprobEntropy(torch.autograd.Function):
    """hidden, weight, bias to the figures of each row, differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        inverse: Tensor,
        task: Task,
    ) -> tuple[Tensor, ...]:
        kept = Kept.allocate(len(hidden), len(weight), inverse, task) if any(ctx.needs_input_grad) else None
        figures, argmax = sweep(hidden, weight, target, inverse, bias, task, kept)
        found = dict(zip(task.wants.figures, figures.unbind(0), strict=True))
        ctx.save_for_backward(hidden, weight, bias, target, inverse, figures)
        ctx.task, ctx.kept = task, kept
        fixed = [value for name, value in found.items() if name not in task.wants.differentiable]
        ctx.mark_non_differentiable(*fixed, argmax)
        ctx.set_materialize_grads(False)
        return *found.values(), argmax

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, inverse, figures = ctx.saved_tensors
        task, kept, ctx.kept = ctx.task, ctx.kept, None  # kept logits are overwritten: another backward recomputes
        named = dict(zip(task.wants.figures, figures.unbind(0), strict=True))
        upstream = dict(zip(task.wants.figures, gradients[:-1], strict=True))
        given = Operands(hidden, weight, bias, target, inverse, ctx.needs_input_grad[:3])
        with exact(hidden):
            live = live_rows([upstream[name] for name in task.wants.differentiable], target)
            scalars = row_scalars(named, upstream, inverse, task.wants)
            run = by_slices if task.slices else by_rows
            return *run(given, live, scalars, kept, task).finished(given), None, None, None


def live_rows(gradients: list[Tensor | None], target: Tensor) -> Tensor:
    """Return the rows with a gradient other than 0 (NaN is other than 0), [n]."""
    present = [gradient != 0 for gradient in gradients if gradient is not None]
    return torch.nonzero(torch.stack(present).any(0)).squeeze(1) if present else target.new_empty(0)
