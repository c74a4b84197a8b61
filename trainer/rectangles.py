"""Rectangles: completions packed into forward passes, and the hidden states that predict their tokens.

Completions of a group have one prompt. Where the model allows, a rectangle runs each different prompt once and the
completions on top of its key-value cache; the gradient flows back through the cache. Otherwise every row carries its
prompt along. Padding is on the right, behind every real token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectory:
    """Token ids of one prompt and its completion."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def pack(sequences: Sequence[Trajectory], chosen: Sequence[int], budget: int, *, shared: bool) -> list[list[int]]:
    """Group indices into rectangles of at most `budget` tokens with padding, longest first; one row always fits.

    `shared`: a prompt counts once, and completions of one prompt stay together.
    """
    rectangles: list[list[int]] = []
    room = _Room(sequences, shared=shared)
    for index in _order(sequences, chosen, shared=shared):
        if rectangles and room.with_row(index) <= budget:
            rectangles[-1].append(index)
        else:
            rectangles.append([index])
            room = _Room(sequences, shared=shared)
        room.add(index)
    return rectangles


def _order(sequences: Sequence[Trajectory], chosen: Sequence[int], *, shared: bool) -> list[int]:
    """Return the indices by falling length; where prompts are shared, by their longest completion first."""
    if not shared:
        return sorted(chosen, key=lambda i: -len(sequences[i]))
    longest: dict[tuple[int, ...], int] = {}
    for i in chosen:
        row = sequences[i]
        longest[row.prompt] = max(longest.get(row.prompt, 0), len(row.completion))
    rank = {prompt: place for place, prompt in enumerate(sorted(longest, key=lambda p: (-longest[p], -len(p))))}
    return sorted(chosen, key=lambda i: (rank[sequences[i].prompt], -len(sequences[i].completion)))


class _Room:
    """How many tokens, padding included, a growing rectangle has."""

    def __init__(self, sequences: Sequence[Trajectory], *, shared: bool) -> None:
        self.sequences, self.shared = sequences, shared
        self.rows, self.width, self.prompts, self.longest = 0, 0, set[tuple[int, ...]](), 0

    def _grown(self, index: int) -> tuple[int, int, int, int]:
        row = self.sequences[index]
        width = max(self.width, len(row.completion) if self.shared else len(row))
        prompts = len(self.prompts) + (self.shared and row.prompt not in self.prompts)
        return self.rows + 1, width, prompts, max(self.longest, len(row.prompt))

    def with_row(self, index: int) -> int:
        rows, width, prompts, longest = self._grown(index)
        return rows * width + prompts * longest

    def add(self, index: int) -> None:
        self.rows, self.width, _, self.longest = self._grown(index)
        self.prompts.add(self.sequences[index].prompt)


def whole_states(model: Any, rows: Sequence[Trajectory], device: torch.device) -> Tensor:
    """Return the hidden states that predict the completions' tokens, [n, H]; every row carries its prompt."""
    ids = _padded([(row.prompt + row.completion)[:-1] for row in rows], device)  # nothing follows the last token
    hidden = model(input_ids=ids, use_cache=False)[0]  # [B, T, H]
    # the hidden state before a token predicts it
    first = torch.tensor([len(row.prompt) - 1 for row in rows], device=device)[:, None]
    count = torch.tensor([len(row.completion) for row in rows], device=device)[:, None]
    place = torch.arange(ids.shape[1], device=device)
    return hidden[(place >= first) & (place < first + count)]


def shared_states(model: Any, rows: Sequence[Trajectory], device: torch.device) -> Tensor:
    """Return the same, running each different prompt once."""
    from transformers import DynamicCache

    place = {prompt: index for index, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
    owner = torch.tensor([place[row.prompt] for row in rows])
    lengths = torch.tensor([len(prompt) for prompt in place])
    cache = DynamicCache(config=model.config)
    ids = _padded(list(place), device)
    before = model(input_ids=ids, past_key_values=cache, use_cache=True)[0]  # [U, P, H]
    last = before[torch.arange(len(place), device=device), (lengths - 1).to(device)][owner.to(device)]  # [R, H]
    width = max(len(row.completion) for row in rows) - 1
    if width == 0:
        return last
    cache.batch_select_indices(owner.to(device))
    start = lengths[owner].to(device)  # [R]
    steps = torch.arange(ids.shape[1] + width, device=device)
    real = (steps < start[:, None]) | (steps >= ids.shape[1])  # the padding between a prompt and its completion is not
    after = model(
        input_ids=_padded([row.completion[:-1] for row in rows], device),
        attention_mask=real.long(),
        position_ids=start[:, None] + torch.arange(width, device=device),
        past_key_values=cache,
        use_cache=True,
    )[0]  # [R, T, H]
    states = torch.cat([last[:, None], after], 1)  # [R, 1 + T, H]
    counts = torch.tensor([len(row.completion) for row in rows], device=device)
    return states[torch.arange(width + 1, device=device) < counts[:, None]]


def _padded(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """Return rows of one width, [R, T]; the last token is repeated: models warn of padding tokens."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *(row[-1:] or (0,)) * (width - len(row))] for row in rows], device=device)


def shareable(model: Any, vocabulary: int, device: torch.device, tolerance: float) -> bool:
    """Return whether both ways give this model the same states, found by trying; some caches keep a window only."""
    ids = [index % vocabulary for index in (1, 2, 3, 4, 5)]
    rows = [
        Trajectory(tuple(ids[:3]), tuple(ids)),
        Trajectory(tuple(ids[:3]), (2, 1)),
        Trajectory((3,), tuple(ids[:2])),
    ]
    if getattr(model.config, "sliding_window", None) and getattr(model.config, "use_sliding_window", True):
        return False
    try:
        with torch.no_grad():
            whole, shared = (states(model, rows, device).float() for states in (whole_states, shared_states))
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):  # a model without this kind of cache
        return False
    return bool(torch.allclose(whole, shared, rtol=tolerance, atol=tolerance * (1 + float(whole.abs().max()))))
