"""Layout: where each process's tokens stand in the batch of the whole step.

Prompts are dealt to processes in turn, tokens are flat, and the step's order is that of the completion's index. So the
same step looks the same to the objective for every number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.distributed import World


@dataclass(frozen=True)
class Layout:
    """Order of S completions and N tokens over all processes."""

    world: World
    index: Tensor  # [S] completion indices, ascending
    length: Tensor  # [S] tokens of each that count
    mine: Tensor  # [n] global token positions of this process's tokens, in its own order
    _completions: Tensor  # [S] permutation of the processes' completions joined in rank order
    _tokens: Tensor  # [N] the same for tokens

    @classmethod
    def of(cls, world: World, index: Tensor, length: Tensor) -> Layout:
        """Agree on the layout from this process's completion indices [s] and lengths [s]."""
        parts = world.gather((index, length))
        before = sum(int(lengths.sum()) for _, lengths in parts[: world.rank])
        indices, lengths = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        order = torch.argsort(indices, stable=True)
        tokens = _spans(lengths.cumsum(0) - lengths, lengths, order)
        back = torch.empty_like(tokens)
        back[tokens] = torch.arange(len(tokens))
        mine = back[before : before + int(length.sum())]
        return cls(world, indices[order], lengths[order], mine, order, tokens)

    @property
    def sequence(self) -> Tensor:
        """Return which completion each token belongs to, [N], counted in the step's order."""
        return torch.repeat_interleave(torch.arange(len(self.length)), self.length)

    def completions(self, values: Tensor) -> Tensor:
        """Join this process's [s, ...] with the others' into the step's [S, ...]."""
        return torch.cat(self.world.gather(values))[self._completions]

    def tokens(self, values: Tensor) -> Tensor:
        """Join this process's [n, ...] with the others' into the step's [N, ...]."""
        return torch.cat(self.world.gather(values))[self._tokens]


def _spans(starts: Tensor, lengths: Tensor, order: Tensor) -> Tensor:
    """Return the token positions of spans taken in another order."""
    starts, lengths = starts[order], lengths[order]
    offsets = torch.arange(int(lengths.sum())) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return torch.repeat_interleave(starts, lengths) + offsets
