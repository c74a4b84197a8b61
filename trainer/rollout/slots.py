"""Key-value slots: one row of memory for each completion in flight, so rows come and go without moving the others.

Row i of a step is slot i. Each slot has its own length: a prompt is written from column 0, a new token at the slot's
end, and attention reads the used columns behind a mask. Nothing is padded on the left and nothing is copied to append,
which is what a growing cache spends its time on: at 64 rows of 300 tokens (3 heads of 64) concatenating takes as long
as the attention itself. Columns are added in large steps, layer by layer, so memory follows the longest row.

Shapes stay the same between such steps. They are not captured in CUDA graphs: the gain depends on launch overhead,
which no machine without a GPU can measure, and an unmeasured fast path is a liability.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from trainer.policy import Policy

PREFILL_TOKENS = 2048  # in one pass over prompts, padding included; one prompt always fits
COLUMNS = 32  # added at least


class Slots:
    """Rows of a decode batch over per-slot key-value memory; takes prompts in the order given, equal ones once."""

    def __init__(self, policy: Policy, prompts: Sequence[tuple[int, ...]], *, rows: int, columns: int) -> None:
        """`rows` at most at a time, each of at most `columns` tokens; equal prompts should be neighbours."""
        self.policy, self.prompts, self.rows, self.columns = policy, prompts, min(rows, len(prompts)), columns
        self.lengths = np.zeros(0, dtype=np.int64)  # tokens in each slot in use
        self.taken = 0  # prompts admitted so far
        self.ready: _Batch | None = None
        self.shape = _Shape(self.rows)
        self.layers = [_Layer(self.shape) for _ in DynamicCache(config=policy.lm.config).layers]
        self.cache = Cache(layers=list(self.layers))

    @property
    def room(self) -> int:
        """Return how many prompts may be admitted now."""
        return self.rows - len(self.lengths)

    def admit(self, count: int) -> Tensor:
        """Append the next prompts as rows; return the hidden states that predict their first tokens, [count, H]."""
        states = []
        while count:
            if self.ready is None:
                self.ready = self._prefill()
            part = min(count, self.ready.end - self.taken)
            states.append(self._place(self.ready, part))
            self.taken, count = self.taken + part, count - part
            if self.taken == self.ready.end:
                self.ready = None
                for layer in self.layers:
                    layer.fresh = None
        return torch.cat(states)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row, [R] to the hidden states that predict the next, [R, H]."""
        width = int(self.lengths.max()) + 1
        self._reserve(width)
        place = torch.from_numpy(self.lengths).to(tokens.device)
        self.shape.append(place, width)
        # always with a mask: without one, models warn of padding wherever a drawn token looks like it
        mask = torch.zeros(len(tokens), width, device=tokens.device, dtype=self.policy.lm.dtype)
        mask.masked_fill_(torch.arange(width, device=tokens.device) > place[:, None], -torch.inf)
        out = self.policy.hidden(
            tokens[:, None],
            attention_mask=mask[:, None, None],
            position_ids=place[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.lengths = self.lengths + 1
        return out[0][:, -1]

    def keep(self, order: np.ndarray) -> None:
        """Make row i what row `order[i]` was and forget the rest; only rows that change place are copied."""
        moved = np.flatnonzero(order != np.arange(len(order)))
        self.lengths = self.lengths[order]
        if len(moved):
            width = int(self.lengths[moved].max())
            source, target = (torch.from_numpy(rows).to(self.policy.device) for rows in (order[moved], moved))
            for layer in self.layers:
                layer.move(source, target, width)

    def _prefill(self) -> _Batch:
        """Run the next different prompts, as many as fit; padding on the right is behind every real token."""
        prompts: list[tuple[int, ...]] = []
        owner: list[int] = []
        for prompt in self.prompts[self.taken :]:
            if not prompts or prompt != prompts[-1]:
                widest = max(len(prompt), max(map(len, prompts), default=0))
                if prompts and (len(prompts) >= self.rows or (len(prompts) + 1) * widest > PREFILL_TOKENS):
                    break
                prompts.append(prompt)
            owner.append(len(prompts) - 1)
        width = max(map(len, prompts))
        # the last token is repeated: models warn of padding tokens
        ids = torch.tensor([[*p, *p[-1:] * (width - len(p))] for p in prompts], device=self.policy.device)
        self.shape.prefill()
        states = self.policy.hidden(ids, past_key_values=self.cache, use_cache=True)[0]
        lengths = np.array([len(prompt) for prompt in prompts])
        last = states[torch.arange(len(prompts), device=ids.device), torch.from_numpy(lengths - 1).to(ids.device)]
        return _Batch(last, lengths, np.array(owner), self.taken)

    def _place(self, batch: _Batch, count: int) -> Tensor:
        """Copy the prompts of the next rows into slots; return their last hidden states."""
        owner = batch.owner[self.taken - batch.start :][:count]
        lengths, first = batch.lengths[owner], len(self.lengths)
        width = int(lengths.max())
        self._reserve(width)
        chosen = torch.from_numpy(owner).to(self.policy.device)
        for layer in self.layers:
            layer.place(chosen, first, width)
        self.lengths = np.concatenate([self.lengths, lengths])
        return batch.last[chosen]

    def _reserve(self, width: int) -> None:
        if width <= self.shape.columns:
            return
        self.shape.columns = max(width, min(max(width + COLUMNS, self.shape.columns * 3 // 2), self.columns))
        for layer in self.layers:
            layer.grow()


class _Batch:
    """Prompts that were run and whose rows are not all admitted yet."""

    def __init__(self, last: Tensor, lengths: np.ndarray, owner: np.ndarray, start: int) -> None:
        self.last, self.lengths, self.owner = last, lengths, owner  # [U, H], [U], prompt of each row [n]
        self.start, self.end = start, start + len(owner)


class _Shape:
    """What all layers share: size, and where the tokens of the pass under way go."""

    def __init__(self, rows: int) -> None:
        self.rows, self.columns = rows, 0
        self.live, self.width = 0, 0  # rows and columns that attention reads; 0 while prompts are run
        self.place = torch.zeros(0, dtype=torch.long)

    def prefill(self) -> None:
        self.live = self.width = 0

    def append(self, lengths: Tensor, width: int) -> None:
        self.live, self.width = len(lengths), width
        self.place = torch.arange(self.live, device=lengths.device) * self.columns + lengths


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, [rows, columns, heads, size]: a token's heads lie together and are written at once.

    Unused columns are zeros or old values, never uninitialised: the mask multiplies them by zero.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.shape = shape
        self.fresh: tuple[Tensor, Tensor] | None = None  # keys and values of prompts, [U, heads, T, size]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (
            states.new_zeros(self.shape.rows, 0, states.shape[1], states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.shape.width:
            self.fresh = key_states, value_states
            return key_states, value_states
        return self._append(self.keys, key_states), self._append(self.values, value_states)

    def _append(self, memory: Tensor, states: Tensor) -> Tensor:
        memory.view(-1, *memory.shape[2:]).index_copy_(0, self.shape.place, states[:, :, 0])
        return memory[: self.shape.live, : self.shape.width].transpose(1, 2)

    def place(self, owner: Tensor, first: int, width: int) -> None:
        """Copy prompts into consecutive slots."""
        assert self.fresh is not None
        for memory, states in zip((self.keys, self.values), self.fresh, strict=True):
            memory[first : first + len(owner), :width] = states[owner, :, :width].transpose(1, 2)

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        for memory in (self.keys, self.values):
            memory[:, :width].index_copy_(0, target, memory[source, :width])

    def grow(self) -> None:
        """Give every slot the shape's number of columns."""
        self.keys, self.values = self._grown(self.keys), self._grown(self.values)

    def _grown(self, memory: Tensor) -> Tensor:
        larger = memory.new_zeros(memory.shape[0], self.shape.columns, *memory.shape[2:])
        larger[:, : memory.shape[1]] = memory
        return larger

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.shape.width or query_length, 0

    def get_seq_length(self) -> int:
        return max(0, self.shape.width - 1)

    def get_max_length(self) -> int:
        return -1


def reach(config: Any) -> int:
    """Return how many tokens slots serve a model with: its smallest attention window; 0 where it keeps other states."""
    windows = [sys.maxsize]
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            windows.append(layer.sliding_window)
        elif type(layer) is not DynamicLayer:
            return 0
    return min(windows)
