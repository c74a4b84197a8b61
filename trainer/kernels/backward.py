"""What the logits' gradient leads to: d hidden, d weight and d bias, chunk after chunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.kernels.chunks import Buffer, parts
from trainer.kernels.kept import Kept
from trainer.kernels.products import logits_, states_gradient_, weight_gradient_
from trainer.kernels.task import Task, product_dtype

Rows = slice | Tensor  # a run of rows, or their numbers


@dataclass(frozen=True)
class Operands:
    """The tensors of a call, and which of hidden, weight and bias want a gradient."""

    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    target: Tensor  # [N]
    inverse: Tensor  # [N] wide
    wanted: tuple[bool, ...]

    @property
    def wide(self) -> torch.dtype:
        return self.inverse.dtype

    @property
    def narrow(self) -> torch.dtype:
        """Return the dtype in which the logits' gradient meets weight and hidden."""
        return product_dtype(self.weight, self.wide)


@dataclass
class Gradients:
    """Gradients under construction; None where nobody wants one."""

    hidden: Tensor | None  # [N, H] in the dtype of hidden
    weight: Tensor | None  # [V, H]
    bias: Tensor | None  # [V] wide
    started: bool = False  # whether `weight` holds something already

    @classmethod
    def of(cls, given: Operands, weight_dtype: torch.dtype) -> Gradients:
        """Return zeros for hidden and bias, and memory for the weight."""
        wants_hidden, wants_weight, wants_bias = given.wanted
        return cls(
            torch.zeros_like(given.hidden, memory_format=torch.contiguous_format) if wants_hidden else None,
            torch.empty(given.weight.shape, dtype=weight_dtype, device=given.weight.device) if wants_weight else None,
            given.inverse.new_zeros(len(given.weight)) if wants_bias else None,
        )

    def finished(self, given: Operands) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients in the dtypes of what they belong to."""
        if self.weight is not None and not self.started:
            self.weight.zero_()
        d_weight = None if self.weight is None else self.weight.to(given.weight.dtype)
        d_bias = None if self.bias is None or given.bias is None else self.bias.to(given.bias.dtype)
        return self.hidden, d_weight, d_bias


def by_rows(given: Operands, live: Tensor, scalars: Tensor, kept: Kept | None, task: Task) -> Gradients:
    """Return the gradients of the rows `live`, a few rows over the whole vocabulary at a time."""
    vocabulary, buffer = len(given.weight), Buffer(given.inverse)
    whole = len(live) == len(given.hidden)
    size, first = task.rows(len(live), vocabulary, given.wide), kept_among(live, kept)
    out = Gradients.of(given, given.weight.dtype if size >= len(live) and first in (0, len(live)) else given.wide)
    for part in (*parts(first, size), *parts(len(live), size, start=first)):
        rows = part if whole else live[part]
        if kept is None or part.start >= first:
            logits = logits_(buffer.of(part.stop - part.start, vocabulary), given.hidden[rows], given.weight)
        elif whole and kept.centre is None:
            logits = kept.logits[part]
        else:
            logits = kept.load_(buffer.of(part.stop - part.start, vocabulary), live[part], slice(None))
        add_rows_(out, given, rows, logits, scalars[:, rows], task)
    return out


def add_rows_(out: Gradients, given: Operands, rows: Rows, logits: Tensor, scalars: Tensor, task: Task) -> None:
    """Overwrite the logits of some rows with their gradient and add what follows from it."""
    gradient = task.gradient_(logits, given.target[rows], given.inverse[rows], scalars, given.bias, dtype=given.narrow)
    if out.bias is not None:
        out.bias += gradient.sum(0, dtype=given.wide)
    if out.hidden is not None and isinstance(rows, slice) and out.hidden.dtype in (given.wide, given.narrow):
        states_gradient_(out.hidden[rows], gradient, given.weight)
    elif out.hidden is not None:
        found = given.inverse.new_empty(len(gradient), out.hidden.shape[1])
        out.hidden[rows] = states_gradient_(found, gradient, given.weight).to(out.hidden.dtype)
    if out.weight is not None:
        weight_gradient_(out.weight, gradient, given.hidden[rows], add=out.started)
    out.started = True


def by_slices(given: Operands, live: Tensor, scalars: Tensor, kept: Kept | None, task: Task) -> Gradients:
    """Return the gradients of the rows `live`, all of them over a slice of the vocabulary at a time."""
    out, buffer = Gradients.of(given, given.weight.dtype), Buffer(given.inverse)
    if not len(live):
        return out
    states, target, inverse, scalars = given.hidden[live], given.target[live], given.inverse[live], scalars[:, live]
    d_states, first = inverse.new_empty(states.shape), kept_among(live, kept)
    for columns in parts(len(given.weight), task.fitting(len(live) * given.wide.itemsize)):
        weight = given.weight[columns]
        logits = buffer.of(len(live), len(weight))
        if kept is not None and first:
            kept.load_(logits[:first], live[:first], columns)
        if first < len(live):
            logits_(logits[first:], states[first:], weight)
        bias = None if given.bias is None else given.bias[columns]
        gradient = task.gradient_(logits, target, inverse, scalars, bias, first=columns.start, dtype=given.narrow)
        if out.bias is not None:
            out.bias[columns] = gradient.sum(0, dtype=given.wide)
        if out.weight is not None:
            weight_gradient_(out.weight[columns], gradient, states)
        if out.hidden is not None:
            states_gradient_(d_states, gradient, weight, add=columns.start > 0)
    out.started = True
    if out.hidden is not None:
        out.hidden[live] = d_states.to(out.hidden.dtype)
    return out


def kept_among(live: Tensor, kept: Kept | None) -> int:
    """Return how many of the rows, which ascend, have kept logits."""
    return 0 if kept is None else int((live < len(kept)).sum())
