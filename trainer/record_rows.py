"""Rows: completions chosen for a rollout file, with a value for every token they hold.

The step knows only tokens that count. A context token has what was recorded of its parent's token where that one is in
the file too, else what sampling said of it, else nothing (NaN).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.completion import Completion
from trainer.update import Update

Array = NDArray[Any]
Said = Callable[[Completion], Sequence[float]]


@dataclass(frozen=True)
class Rows:
    """S completions of a step in the order of the file, and what became of the step."""

    chosen: list[Completion]
    update: Update

    @cached_property
    def places(self) -> list[int]:
        """Return where each completion stands in the step, [S]."""
        return [int(torch.searchsorted(self.update.layout.index, c.index)) for c in self.chosen]

    @cached_property
    def spans(self) -> list[slice]:
        """Return where the tokens of each that count stand in the step, [S]."""
        length = self.update.layout.length
        ends = length.cumsum(0)
        return [slice(int(ends[place] - length[place]), int(ends[place])) for place in self.places]

    @cached_property
    def row_of(self) -> dict[int, int]:
        """Return the row of each completion by its index in the step."""
        return {completion.index: row for row, completion in enumerate(self.chosen)}

    def parent(self, completion: Completion) -> int | None:
        """Return the row of the completion it forks off, or None."""
        return None if completion.parent is None else self.row_of.get(completion.parent)

    def counting(self, values: Tensor) -> list[Array]:
        """Cut [N] into the tokens of each completion that count."""
        array = values.detach().numpy()
        return [array[span] for span in self.spans]

    def marked(self, values: Tensor, context: Callable[[int], int] = lambda row: 0) -> list[Array]:
        """Cut [N] into the tokens of each completion; its context has one value, which depends on the row."""
        found = []
        for row, (completion, own) in enumerate(zip(self.chosen, self.counting(values), strict=True)):
            full = np.full(len(completion.tokens.completion), context(row), own.dtype)
            found.append(_filled(completion, full, own))
        return found

    def known(self, values: Tensor, said: Said = lambda completion: ()) -> list[Array]:
        """Cut [N] into the tokens of each completion; its context has what is known of it: `said` is of sampling."""
        own, found = self.counting(values), dict[int, Array]()

        def full(row: int) -> Array:
            completion = self.chosen[row]
            if row not in found:
                found[row] = _filled(completion, self._before(completion, own[row].dtype, said, full), own[row])
            return found[row]

        return [full(row) for row in range(len(self.chosen))]

    def _before(self, completion: Completion, kind: Any, said: Said, full: Callable[[int], Array]) -> Array:
        """Return what is known of all tokens of a completion without those that count."""
        size = len(completion.tokens.completion)
        found = np.full(size, np.nan, kind)
        if not completion.tokens.counts:
            return found
        words, parent = said(completion), self.parent(completion)
        if len(words) == size:
            found[:] = words
        if parent is not None and completion.fork_at:
            found[: completion.fork_at] = full(parent)[: completion.fork_at]
        return found


def _filled(completion: Completion, full: Array, own: Array) -> Array:
    """Return an array over all tokens with the values of those that count put in."""
    if not completion.tokens.counts:
        return own
    full[np.array(completion.tokens.counts)] = own
    return full


def segments(completion: Completion) -> list[dict[str, Any]]:
    """Return who said what: runs of tokens of one kind.

    "prefix" was given to sampling: the first `fork_at` tokens of the parent, and any beginning that does not count;
    "model" was sampled; "tool" is any other context.
    """
    counts, size = completion.tokens.counts, len(completion.tokens.completion)
    given = max(completion.fork_at or 0, (*counts, True).index(True))

    def kind(place: int) -> str:
        if place < given:
            return "prefix"
        return "tool" if counts and not counts[place] else "model"

    found, first = [], 0
    for name, run in groupby(range(size), kind):
        count = len(list(run))
        found.append({"kind": name, "first": first, "count": count})
        first += count
    return found
