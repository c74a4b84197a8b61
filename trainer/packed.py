"""Packed rows: completions one after another in one row without padding, each prompt once, and the states they give.

A row is a list of segments: a prompt, then the completions of that prompt, the next prompt, and so on. A completion
attends to its own prompt and to itself (a tree of depth two), a prompt to itself. Nothing follows a completion's last
token, so that token is not in the row. `trainer/attention.py` computes attention inside a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.rectangles import Trajectory, by_prompt

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Segments:
    """The pieces of a row in order, [G] each."""

    start: Integers  # place of the first token in the row
    count: Integers  # tokens, never 0
    prefix_start: Integers  # place of the prompt's first token, for completions
    prefix_count: Integers  # its tokens; 0 for prompts

    @property
    def keys(self) -> Integers:
        """Return how many tokens the last token of each segment attends to, [G]."""
        return self.prefix_count + self.count


@dataclass(frozen=True)
class PackedRow:
    """What one forward pass runs: [N] tokens that predict the n tokens of some completions."""

    ids: Integers  # [N]
    positions: Integers  # [N] place inside the own sequence
    predicts: Integers  # [n] the token of the row whose hidden state predicts each completion token, in given order
    segments: Segments

    @staticmethod
    def of(rows: Sequence[Trajectory]) -> PackedRow:
        """Lay out completions that have at least one token; rows of one prompt need not stand together."""
        pieces: list[tuple[int, ...]] = []
        places: list[tuple[int, int, int, int]] = []  # the fields of Segments
        prompts, first, end = [0] * len(rows), [0] * len(rows), 0  # where each completion's two segments begin
        for prompt, members in by_prompt(rows, range(len(rows))).items():
            root = end
            pieces.append(prompt)
            places.append((root, len(prompt), 0, 0))
            end += len(prompt)
            for i in members:
                prompts[i], first[i] = root, end
                if tail := rows[i].completion[:-1]:
                    pieces.append(tail)
                    places.append((end, len(tail), root, len(prompt)))
                    end += len(tail)
        segments = Segments(*np.array(places).T.copy())
        positions = np.arange(end) + np.repeat(segments.prefix_count - segments.start, segments.count)
        ids = np.fromiter(chain.from_iterable(pieces), np.int64, end)
        return PackedRow(ids, positions, _predicting(rows, prompts, first), segments)

    def __len__(self) -> int:
        return len(self.ids)


def _predicting(rows: Sequence[Trajectory], prompts: list[int], first: list[int]) -> Integers:
    """Return the places of the tokens before the completions' tokens: a prompt's last, then the completion's own."""
    lengths = np.array([len(row.completion) for row in rows])
    before = np.array([place + len(row.prompt) - 1 for place, row in zip(prompts, rows, strict=True)])
    begins = lengths.cumsum() - lengths
    found = np.arange(lengths.sum()) + np.repeat(np.array(first) - 1 - begins, lengths)
    found[begins] = before
    return found


def pack_rows(sequences: Sequence[Trajectory], chosen: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices into as few rows of at most `budget` tokens as filling in order gives, evenly filled.

    A prompt counts once a row, every token of a completion counts; a single completion always fits. Completions of one
    prompt stay together where they fit; the longest come first, so that memory runs out at once or not at all.
    """
    groups = [
        sorted(group, key=lambda i: -len(sequences[i].completion)) for group in by_prompt(sequences, chosen).values()
    ]
    groups.sort(key=lambda group: -len(sequences[group[0]]))
    rows = _filled(sequences, groups, budget)
    low, high = budget // 2, budget
    while len(rows) > 1 and high - low > max(1, budget // 64):  # the smallest room that needs no more rows
        middle = (low + high) // 2
        tighter = _filled(sequences, groups, middle)
        if len(tighter) > len(rows):
            low = middle
        else:
            rows, high = tighter, middle
    return rows


def _filled(sequences: Sequence[Trajectory], groups: Sequence[Sequence[int]], room: int) -> list[list[int]]:
    rows: list[list[int]] = []
    left = 0
    for group in groups:
        prompt, here = len(sequences[group[0]].prompt), False  # is the prompt in the last row?
        for i in group:
            length = len(sequences[i].completion)
            if rows and left >= length + (0 if here else prompt):
                rows[-1].append(i)
            else:
                rows.append([i])
                left, here = room, False
            left -= length + (0 if here else prompt)
            here = True
    return rows


def packed_states(model: Any, rows: Sequence[Trajectory], device: torch.device, *, plan: Any) -> Tensor:
    """Return the hidden states that predict the completions' tokens, [n, H], in the order of the rows.

    `plan` makes of a PackedRow what the attention function needs (trainer/attention.py).
    """
    row = PackedRow.of(rows)
    ids, positions, predicts = (
        torch.from_numpy(part).to(device, non_blocking=True) for part in (row.ids, row.positions, row.predicts)
    )
    hidden = model(
        input_ids=ids[None],
        position_ids=positions[None],
        # A mask of four dimensions is passed on as it is; without one the model would build one of N x N.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        use_cache=False,
        packed=plan(row, device),
    )[0][0]
    return hidden.index_select(0, predicts)
