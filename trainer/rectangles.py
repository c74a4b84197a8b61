"""Rectangles: completions packed into forward passes, and the hidden states that predict their tokens.

Completions of a group have one prompt. Where the model allows, a rectangle runs each different prompt once and the
completions on top of its key-value cache; the gradient flows back through the cache. Otherwise every row carries its
prompt along. Padding is on the right, behind every real token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

# A pass is worth this many more tokens of padding. Four layers of SmolLM2's width on one core: a pass of one token took
# as long as 43 tokens of a long one, forward and backward; passes of 256 to 1,024 tokens showed no fixed cost at all.
PASS_TOKENS = 64

T = TypeVar("T")


@dataclass(frozen=True)
class Trajectory:
    """Token ids of one prompt and its completion.

    `counts` says which completion tokens the step learns from, empty for all of them; the others are context: the model
    reads them and nothing else sees them (prefixes of forks, what tools say). Raises ValueError where it says so of
    another number of tokens.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    counts: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.counts and len(self.counts) != len(self.completion):
            raise ValueError(f"counts speaks of {len(self.counts)} tokens, the completion has {len(self.completion)}")

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @cached_property
    def learned(self) -> int:
        """Return how many completion tokens count."""
        return sum(self.counts) if self.counts else len(self.completion)

    def counting(self, values: Sequence[T]) -> Sequence[T]:
        """Return those of a value for each completion token that belong to tokens that count."""
        return list(compress(values, self.counts)) if self.counts else values


def by_prompt(sequences: Sequence[Trajectory], chosen: Iterable[int]) -> dict[tuple[int, ...], list[int]]:
    """Return the chosen indices under their prompts, both in order of appearance."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i in chosen:
        found.setdefault(sequences[i].prompt, []).append(i)
    return found


def rooted(sequences: Sequence[Trajectory]) -> Sequence[Trajectory]:
    """Return the sequences with beginnings that do not count moved into their prompts, where that saves tokens.

    Forks off one completion at one place begin alike: as a prompt, that runs once for all of them, and the prompt
    itself once more.
    """
    if not any(row.counts for row in sequences):
        return sequences
    given = [row.counts.index(True) if row.counts and row.learned else 0 for row in sequences]
    alike = Counter((row.prompt, row.completion[:at]) for row, at in zip(sequences, given, strict=True))

    def moved(row: Trajectory, at: int) -> Trajectory:
        before, counts = row.completion[:at], row.counts[at:]
        if (alike[row.prompt, before] - 1) * at <= len(row.prompt):
            return row
        return Trajectory(row.prompt + before, row.completion[at:], () if all(counts) else counts)

    return [moved(row, at) for row, at in zip(sequences, given, strict=True)]


def pack(sequences: Sequence[Trajectory], chosen: Sequence[int], budget: int, *, shared: bool) -> list[list[int]]:
    """Cut the sorted indices into rectangles of at most `budget` tokens with padding; one row always fits.

    Of all such cuts, the one with the fewest tokens where every rectangle costs PASS_TOKENS more. Longest first.
    `shared`: a prompt counts once, and completions of one prompt stay together.
    """
    order = _order(sequences, chosen, shared=shared)
    widths = np.array([len(sequences[i].completion if shared else sequences[i]) for i in order])
    prompts = np.array([len(sequences[i].prompt) if shared else 0 for i in order])
    fresh = np.array([shared and (not k or sequences[order[k - 1]].prompt != sequences[i].prompt)
                      for k, i in enumerate(order)], dtype=np.int64)  # fmt: skip
    count = len(order)
    best, ends = np.zeros(count + 1), np.zeros(count, np.int64)
    for first in range(count - 1, -1, -1):
        part = slice(first, min(count, first + max(1, budget // int(widths[first]))))
        different = fresh[part].cumsum() + (shared and not fresh[first])
        rows = np.arange(1, part.stop - first + 1)
        size = rows * np.maximum.accumulate(widths[part]) + different * np.maximum.accumulate(prompts[part])
        cost = np.where((size <= budget) | (rows == 1), size + PASS_TOKENS + best[first + 1 : part.stop + 1], np.inf)
        ends[first] = first + 1 + cost.argmin()
        best[first] = cost.min()
    rectangles, first = [], 0
    while first < count:
        rectangles.append(order[first : ends[first]])
        first = int(ends[first])
    return rectangles


def _order(sequences: Sequence[Trajectory], chosen: Sequence[int], *, shared: bool) -> list[int]:
    """Return the indices by falling length; where prompts are shared, by their longest completion first."""
    if not shared:
        return sorted(chosen, key=lambda i: -len(sequences[i]))
    groups = [
        sorted(group, key=lambda i: -len(sequences[i].completion)) for group in by_prompt(sequences, chosen).values()
    ]
    groups.sort(key=lambda group: (-len(sequences[group[0]].completion), -len(sequences[group[0]].prompt)))
    return [i for group in groups for i in group]


def whole_states(model: Any, rows: Sequence[Trajectory], device: torch.device) -> Tensor:
    """Return the hidden states that predict the completions' tokens, [n, H]; every row carries its prompt."""
    ids = _padded([(row.prompt + row.completion)[:-1] for row in rows], device)  # nothing follows the last token
    hidden = model(input_ids=ids, use_cache=False)[0]  # [B, T, H]
    # the hidden state before a token predicts it
    return _taken(hidden, [len(row.prompt) - 1 for row in rows], rows)


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
    return _taken(states, [0] * len(rows), rows)


def _taken(states: Tensor, first: Sequence[int], rows: Sequence[Trajectory]) -> Tensor:
    """Return as many states of each row, [R, T, H], as it has completion tokens, from `first` on: [n, H]."""
    counts = np.array([len(row.completion) for row in rows])
    starts = np.arange(len(rows)) * states.shape[1] + np.array(first)
    where = np.arange(counts.sum()) + np.repeat(starts - counts.cumsum() + counts, counts)
    return states.flatten(0, 1).index_select(0, torch.from_numpy(where).to(states.device))


def counting_places(rows: Sequence[Trajectory]) -> Tensor | None:
    """Return where the tokens that count, [n], stand among all completion tokens of the rows; None where all count."""
    if not any(row.counts for row in rows):
        return None
    return torch.tensor([flag for row in rows for flag in row.counts or (True,) * len(row.completion)]).nonzero()[:, 0]


def _padded(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """Return rows of one width, [R, T]; the last token is repeated: models warn of padding tokens."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *(row[-1:] or (0,)) * (width - len(row))] for row in rows], device=device)
