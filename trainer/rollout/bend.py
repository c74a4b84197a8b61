"""Bending the distribution a token is drawn from: the torch maths of modifiers.py, and typical sampling.

For any engine, whatever it keeps its rows in:

    bends = Bends([spec, ...], device)              # a spec for each of R rows
    if bends:                                       # false where no row bends anything: nothing to do
        logits = bends.apply(logits, position)      # [R, V] float32, divided by each row's temperature; [R]
    bends.of(rows)                                  # the same for some rows, in their order

`position` counts the tokens of the completion before the one to draw, prefix included. Rows without a modifier come
back bit for bit. The bent logits are at the row's temperature: they are not divided by it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trainer.rollout.modifiers import AdaptiveTemperature, ForkTemperature, UniformChoice, VocabularyDropout
from trainer.rollout.randomness import uniforms

if TYPE_CHECKING:
    from trainer.rollout.base import SamplerSpec

LOWEST = -104.0  # exp of it is zero in float32, so that a logit of -inf counts for nothing
SMALLEST_ENTROPY = 1e-6  # nats; ln of it stands for a certain token (HAPO's sampler)
SMALLEST_SPREAD = 1e-6


class Bends:
    """What bends the logits of R rows, as tensors: rows with the same kind of modifier are bent together."""

    def __init__(self, specs: Sequence[SamplerSpec], device: torch.device) -> None:
        """A single spec is every row's."""
        lists = [(*spec.modifiers, *((_Typical(spec.typical_p),) if spec.typical_p < 1 else ())) for spec in specs]
        depth = max(map(len, lists), default=0)
        self.layers = [
            _Layer(kind, [entry[place] if place < len(entry) else None for entry in lists], device)
            for place in range(depth)
            for kind in dict.fromkeys(type(entry[place]) for entry in lists if place < len(entry))
        ]

    def __bool__(self) -> bool:
        return bool(self.layers)

    def of(self, rows: Tensor | slice) -> Bends:
        """Return what bends some rows, in their order."""
        chosen = object.__new__(Bends)
        chosen.layers = [layer.of(rows) for layer in self.layers]
        return chosen

    def apply(self, logits: Tensor, position: Tensor) -> Tensor:
        """Return bent logits, [R, V] and [R] to [R, V]; -inf where a token cannot come."""
        for layer in self.layers:
            logits = layer.apply(logits, position)
        return logits


class _Typical(float):
    """The mass of locally typical sampling, as if it were a modifier: the last of its row."""


class _Layer:
    """One kind of modifier at one place of the rows' lists: what bends [n, V], and which of R rows it bends."""

    def __init__(self, kind: type, entries: Sequence[object], device: torch.device) -> None:
        different = list(dict.fromkeys(entry for entry in entries if type(entry) is kind))
        self.bend = _BENDS[kind](different, device)
        number = {entry: index for index, entry in enumerate(different)}
        chosen = [number[entry] if type(entry) is kind else -1 for entry in entries]
        self.which = torch.tensor(chosen, device=device)  # [R] which modifier, -1 for none
        self.alone = len(entries) == 1
        self.everywhere = -1 not in chosen

    def of(self, rows: Tensor | slice) -> _Layer:
        if self.alone:
            return self
        chosen = object.__new__(_Layer)
        chosen.__dict__ |= self.__dict__
        chosen.which = self.which[rows]
        return chosen

    def apply(self, logits: Tensor, position: Tensor) -> Tensor:
        if self.everywhere:
            return self.bend(logits, self.which.expand(len(logits)) if self.alone else self.which, position)
        rows = (self.which >= 0).nonzero().squeeze(1)
        return logits.index_copy(0, rows, self.bend(logits[rows], self.which[rows], position[rows]))


Bend = Callable[[Tensor, Tensor, Tensor], Tensor]  # [n, V] logits, [n] which modifier, [n] position to [n, V]


def _columns(modifiers: Sequence[object], device: torch.device) -> Tensor:
    """Return the numbers of modifiers of one kind, [F, U, 1]."""
    values = [astuple(modifier) for modifier in modifiers]  # type: ignore[call-overload]
    return torch.tensor(values, dtype=torch.float64, device=device).T[:, :, None]


def entropy_of(logits: Tensor) -> Tensor:
    """Return the entropy of each row in nats, [R, V] to [R, 1]."""
    centred = (logits - logits.amax(-1, keepdim=True)).clamp_min_(LOWEST)
    mass = centred.exp()
    total = mass.sum(-1, keepdim=True)
    return total.log() - centred.mul_(mass).sum(-1, keepdim=True) / total


def _adaptive(modifiers: Sequence[AdaptiveTemperature], device: torch.device) -> Bend:
    table = _columns(modifiers, device)

    def bend(logits: Tensor, which: Tensor, position: Tensor) -> Tensor:
        pivot, spread, up, down, strength = table[:, which].to(logits.dtype)
        h = (entropy_of(logits).clamp_min(SMALLEST_ENTROPY).log() - pivot) / (spread + SMALLEST_SPREAD)
        return logits / (1 + strength * (h * torch.where(h > 0, up, down)).clamp(-1, 1))

    return bend


def _fork(modifiers: Sequence[ForkTemperature], device: torch.device) -> Bend:
    table = _columns(modifiers, device)

    def bend(logits: Tensor, which: Tensor, position: Tensor) -> Tensor:
        threshold, high, low = table[:, which].to(logits.dtype)
        return logits / torch.where(entropy_of(logits) > threshold, high, low)

    return bend


def _uniform(modifiers: Sequence[UniformChoice], device: torch.device) -> Bend:
    table = _columns(modifiers, device)
    most = max(modifier.k for modifier in modifiers)

    def bend(logits: Tensor, which: Tensor, position: Tensor) -> Tensor:
        k, floor, warm = table[:, which].to(logits.dtype)
        top = logits.softmax(-1).topk(min(most, logits.shape[1]))
        possible = (torch.arange(top.values.shape[1], device=logits.device) < k) & (top.values > 0)
        plausible = possible & (top.values >= floor)
        chosen = torch.where(plausible.any(-1, keepdim=True), plausible, possible)
        scores = torch.where(chosen, 0.0, -torch.inf).to(logits.dtype)
        bent = torch.full_like(logits, -torch.inf).scatter_(1, top.indices, scores)
        return torch.where(position[:, None] < warm, logits, bent)

    return bend


def _dropout(modifiers: Sequence[VocabularyDropout], device: torch.device) -> Bend:
    kept: dict[int, Tensor] = {}  # by size of the vocabulary, which the logits tell: [U, V]

    def bend(logits: Tensor, which: Tensor, position: Tensor) -> Tensor:
        size = logits.shape[1]
        if size not in kept:
            rows = np.stack([vocabulary_kept(modifier, size) for modifier in modifiers])
            kept[size] = torch.from_numpy(rows).to(device)
        bent = logits.masked_fill(~kept[size][which], -torch.inf)
        return torch.where(bent.isfinite().any(-1, keepdim=True), bent, logits)

    return bend


def vocabulary_kept(modifier: VocabularyDropout, size: int) -> np.ndarray:
    """Return which of `size` token ids vocabulary dropout leaves, bool [V]."""
    seeds = np.full(size, modifier.seed, dtype=np.uint64)
    kept = uniforms(seeds, np.arange(size)) < modifier.keep
    kept[[token for token in modifier.spared if token < size]] = True
    return kept


def _typical(modifiers: Sequence[_Typical], device: torch.device) -> Bend:
    table = torch.tensor(modifiers, dtype=torch.float64, device=device)[:, None]

    def bend(logits: Tensor, which: Tensor, position: Tensor) -> Tensor:
        return typical(logits, table[which].to(logits.dtype))

    return bend


def typical(logits: Tensor, mass: Tensor) -> Tensor:
    """Return the logits with -inf outside the locally typical set of so much mass, [R, V] and [R, 1] to [R, V].

    Tokens come in the order of |-ln p - H|; the set is the shortest such list that reaches the mass, with those as far
    from H as its last (2202.00666; transformers' TypicalLogitsWarper).
    """
    logp = logits.log_softmax(-1)
    p = logp.exp()
    away = torch.where(p > 0, (logp + torch.special.entr(p).sum(-1, keepdim=True)).abs(), torch.inf)
    ordered = away.sort(-1)
    reached = p.gather(1, ordered.indices).cumsum(-1) < mass
    last = reached.sum(-1, keepdim=True).clamp_max(logits.shape[1] - 1)
    return logits.masked_fill(away > ordered.values.gather(1, last), -torch.inf)


_BENDS: dict[type, Callable[..., Bend]] = {
    AdaptiveTemperature: _adaptive,
    ForkTemperature: _fork,
    UniformChoice: _uniform,
    VocabularyDropout: _dropout,
    _Typical: _typical,
}
