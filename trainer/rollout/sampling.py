"""Random numbers without state, and drawing tokens with them.

The number that decides a token is a hash of (request seed, position): the same in every batch, process and attempt, so
resuming needs no generator state. Batches of other shapes can still round logits differently in the last bit, which
moves a token only where its number falls within that rounding of a boundary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from trainer.rollout.base import SamplerSpec

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """Return the splitmix64 finaliser of a 64-bit number (Steele, Lea, Flood, OOPSLA 2014)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def seed_of(*parts: int) -> int:
    """Return a 64-bit seed that depends on every part and their order."""
    state = GOLDEN
    for part in parts:
        state = mix((state + part * GOLDEN + GOLDEN) & MASK)
    return state


def uniforms(seeds: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return one number in [0, 1) for each (seed, position), uint64 [R] and int [R] to float64 [R]."""
    value = seeds + (position.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)  # wraps modulo 2^64
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((value ^ (value >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(probability: Tensor, uniform: Tensor) -> Tensor:
    """Return the token at which the cumulative probability first exceeds the uniform number, [R, V] and [R] to [R].

    Probabilities need not sum to one; a token of probability zero is never drawn.
    """
    cumulative = probability.double().cumsum(-1)
    point = uniform[:, None] * cumulative[:, -1:]
    token = (cumulative <= point).sum(-1)
    past_the_end = token >= probability.shape[-1]  # the product may round up to the total
    return torch.where(past_the_end, probability.argmax(-1), token)


class Samplers:
    """The samplers of R rows, as tensors where rows differ in them."""

    def __init__(self, specs: list[SamplerSpec], device: torch.device) -> None:
        self.greedy = torch.tensor([spec.temperature == 0 for spec in specs], device=device)
        self.temperature = torch.tensor([spec.temperature or 1.0 for spec in specs], device=device)
        self.top_p = torch.tensor([spec.top_p for spec in specs], device=device)
        self.top_k = torch.tensor([spec.top_k for spec in specs], device=device)
        self.min_p = torch.tensor([spec.min_p for spec in specs], device=device)
        self._refresh()

    def keep(self, rows: Tensor) -> None:
        """Drop every row but these."""
        for name in ("greedy", "temperature", "top_p", "top_k", "min_p"):
            setattr(self, name, getattr(self, name)[rows])
        self._refresh()

    def _refresh(self) -> None:
        self.truncates = bool(((self.top_p < 1) | (self.top_k > 0) | (self.min_p > 0)).any())
        self.any_greedy = bool(self.greedy.any())

    def sample(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return token, log-prob and entropy (nats) of each row, [R, V] to [R]; the last two of the whole policy."""
        logp = torch.log_softmax(logits.float() / self.temperature[:, None], -1)  # [R, V]
        probability = logp.exp()
        entropy = -(probability * logp.clamp_min(torch.finfo(logp.dtype).min)).sum(-1)
        token = draw(self._truncate(probability) if self.truncates else probability, uniform)
        if self.any_greedy:
            token = torch.where(self.greedy, logp.argmax(-1), token)
        return token, logp.gather(1, token[:, None]).squeeze(1), entropy

    def _truncate(self, probability: Tensor) -> Tensor:
        """Zero what top-k, top-p and min-p leave out, each taken on the full distribution, [R, V]."""
        ordered, order = probability.sort(-1, descending=True)
        rank = torch.arange(probability.shape[-1], device=probability.device)
        limit = torch.where(self.top_k > 0, self.top_k, probability.shape[-1])[:, None]
        before = ordered.cumsum(-1) - ordered  # mass in front of each token: the first token always stays
        keep = (
            (rank < limit)
            & ((before < self.top_p[:, None]) | (rank == 0))
            & (ordered >= self.min_p[:, None] * ordered[:, :1])
        )
        return torch.zeros_like(probability).scatter(1, order, torch.where(keep, ordered, 0.0))
