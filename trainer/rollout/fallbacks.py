"""Rows of a decode batch for models that key-value slots do not serve: with transformers' own cache, or without any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from trainer.policy import Policy

Prompts = Sequence[tuple[int, ...]]


class Waves:
    """Rows over the model's own kind of cache (windows, recurrent states), padded on the left as `generate` does.

    Such a cache cannot take new rows while others are under way: prompts are admitted when all rows are finished.
    """

    def __init__(self, policy: Policy, prompts: Prompts, *, rows: int, columns: int) -> None:
        self.policy, self.prompts, self.rows = policy, prompts, min(rows, len(prompts))
        self.taken, self.live = 0, 0
        self.cache: Any = None
        self.mask: Tensor | None = None  # [R, T] over the cache; None where no row is padded
        self.position = torch.zeros(0, dtype=torch.long)  # of the next token, [R]

    @property
    def room(self) -> int:
        """Return how many prompts may be admitted now."""
        return 0 if self.live else self.rows

    def admit(self, count: int) -> Tensor:
        """Start the next prompts as rows; return the hidden states that predict their first tokens, [count, H]."""
        from transformers import DynamicCache

        given, device = self.prompts[self.taken : self.taken + count], self.policy.device
        unique = {prompt: index for index, prompt in enumerate(dict.fromkeys(given))}
        width = max(map(len, unique))
        ids = torch.tensor([[*p[:1] * (width - len(p)), *p] for p in unique], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in unique], device=device)
        padded, positions = not bool(mask.all()), (mask.cumsum(1) - 1).clamp_min(0)
        self.cache = DynamicCache(config=self.policy.lm.config)
        out = self.policy.hidden(
            ids,
            attention_mask=mask if padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        owner = torch.tensor([unique[prompt] for prompt in given], device=device)
        self.cache.reorder_cache(owner)
        self.mask = mask[owner] if padded else None
        self.position = positions[owner, -1] + 1
        self.taken, self.live = self.taken + count, count
        return out[0][owner, -1]

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row, [R] to the hidden states that predict the next, [R, H]."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        out = self.policy.hidden(
            tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + 1
        return out[0][:, -1]

    def keep(self, order: np.ndarray) -> None:
        """Make row i what row `order[i]` was and forget the rest."""
        if len(order) == self.live:
            return
        self.live = len(order)
        if not self.live:
            self.cache = None
            return
        rows = torch.from_numpy(order).to(self.policy.device)
        self.cache.reorder_cache(rows)
        self.position = self.position[rows]
        self.mask = self.mask[rows] if self.mask is not None else None


class Whole:
    """Rows without any cache: every step runs all tokens again. Slow, and right for every causal model."""

    def __init__(self, policy: Policy, prompts: Prompts, *, rows: int, columns: int) -> None:
        self.policy, self.prompts, self.taken = policy, prompts, 0
        self.rows = min(rows, len(prompts))
        self.tokens: list[tuple[int, ...]] = []

    @property
    def room(self) -> int:
        """Return how many prompts may be admitted now."""
        return self.rows - len(self.tokens)

    def admit(self, count: int) -> Tensor:
        """Append the next prompts as rows; return the hidden states that predict their first tokens, [count, H]."""
        new = list(self.prompts[self.taken : self.taken + count])
        self.taken += count
        self.tokens += new
        return self._run(new)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row, [R] to the hidden states that predict the next, [R, H]."""
        self.tokens = [(*row, token) for row, token in zip(self.tokens, tokens.tolist(), strict=True)]
        return self._run(self.tokens)

    def keep(self, order: np.ndarray) -> None:
        """Make row i what row `order[i]` was and forget the rest."""
        self.tokens = [self.tokens[row] for row in order]

    def _run(self, rows: list[tuple[int, ...]]) -> Tensor:
        width, device = max(map(len, rows)), self.policy.device
        ids = torch.tensor([[*row, *row[-1:] * (width - len(row))] for row in rows], device=device)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        return self.policy.hidden(ids, use_cache=False)[0][torch.arange(len(rows), device=device), last]
