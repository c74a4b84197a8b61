"""Drawing tokens with given random numbers.

Batches of other shapes can round logits differently in the last bit, which moves a token only where its number falls
within that rounding of a boundary.

A draw reads the [R, V] probabilities a few times and keeps one copy of them: block sums are searched first, then one
block, so no cumulative sum over the vocabulary exists; truncation is a threshold, so nothing is scattered back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from trainer.rollout.bend import LOWEST, Bends
from trainer.rollout.randomness import seed_of as seed_of
from trainer.rollout.randomness import uniforms as uniforms

if TYPE_CHECKING:
    from trainer.rollout.base import SamplerSpec

BLOCK = 256  # tokens searched at once
LIKELIEST = 1024  # tokens sorted first; a nucleus is rarely larger


def draw(mass: Tensor, uniform: Tensor) -> Tensor:
    """Return the token at which the cumulative mass first exceeds its share `uniform`, [R, V] and [R] to [R].

    Masses need not sum to one; a token without mass is never drawn.
    """
    width = mass.shape[1]
    if width <= 2 * BLOCK:
        cumulative = mass.double().cumsum(-1)
        return _above(cumulative, uniform[:, None] * cumulative[:, -1:])
    whole = width // BLOCK * BLOCK
    blocks = mass[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)  # [R, V / BLOCK]
    if whole < width:
        blocks = torch.cat([blocks, mass[:, whole:].sum(-1, keepdim=True)], 1)
    cumulative = blocks.double().cumsum(-1)
    point = uniform[:, None] * cumulative[:, -1:]
    block = _above(cumulative, point)[:, None]
    own = blocks.gather(1, block).double()
    share = 1 - (cumulative.gather(1, block) - point) / own  # of the block's mass that lies below the point
    place = block * BLOCK + torch.arange(BLOCK, device=mass.device)
    inside = mass.gather(1, place.clamp_max(width - 1)).double().masked_fill_(place >= width, 0).cumsum(-1)
    return block[:, 0] * BLOCK + _above(inside, share * inside[:, -1:])


def _above(cumulative: Tensor, point: Tensor) -> Tensor:
    """Return the first index whose cumulative mass exceeds the point, [R, n] and [R, 1] to [R].

    It never lies behind the last entry with mass: a point may be rounded up to the total.
    """
    last = (cumulative < cumulative[:, -1:]).sum(-1)
    return torch.minimum((cumulative <= point).sum(-1), last)


def _moments(mass: Tensor, product: Tensor, total: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum p^2, sum p^2 log p and sum p^2 (log p + H)^2 of each row, [R]; overwrites `product`.

    With u the logits less their largest, `mass` is e^u and `product` u e^u, [R, V]. The last sum is taken directly: as
    three sums it would cancel where a token has nearly all the mass.
    """
    squares, log_total = mass.square().sum(-1), total.log()
    second = (mass * product).sum(-1) - log_total * squares
    gain = product.addcmul_(mass, (entropy - log_total)[:, None]).square_().sum(-1)
    scale = total.square()
    return squares / scale, second / scale, gain / scale


def _likeliest(mass: Tensor, total: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return log-probs, then ids of the likeliest tokens, `count` times [R] each; a small vocabulary ends in id -1."""
    found = mass.topk(min(count, mass.shape[1]))
    spare = (0, count - found.values.shape[1])
    logprob = pad((found.values / total[:, None]).log(), spare, value=-torch.inf)
    return *logprob.unbind(1), *pad(found.indices.float(), spare, value=-1.0).unbind(1)  # float32 holds ids to 2^24


class Samplers:
    """The samplers of R rows as tensors; of one row where all are equal."""

    def __init__(self, specs: Sequence[SamplerSpec], device: torch.device) -> None:
        rows = list(specs[:1] if len(set(specs)) == 1 else specs)
        self.temperature = torch.tensor([spec.temperature or 1.0 for spec in rows], device=device)[:, None]
        self.greedy = torch.tensor([spec.temperature == 0 for spec in rows], device=device)
        self.min_p = torch.tensor([spec.min_p for spec in rows], device=device)[:, None]
        self.top_p = torch.tensor([spec.top_p for spec in rows], device=device)[:, None]
        self.top_k = torch.tensor([spec.top_k for spec in rows], device=device)[:, None]
        self.rows = len(rows)
        self.scales = any(spec.temperature not in (0, 1) for spec in rows)
        self.any_greedy = any(spec.temperature == 0 for spec in rows)
        self.ranks = any(spec.top_k > 0 or spec.top_p < 1 for spec in rows)
        self.truncates = self.ranks or any(spec.min_p > 0 for spec in rows)
        self.bends = Bends(rows, device)
        self.plain = all(spec.plain for spec in rows)

    def of(self, rows: Tensor | slice) -> Samplers:
        """Return the samplers of some rows, in their order."""
        if self.rows == 1:
            return self
        chosen = object.__new__(Samplers)
        chosen.__dict__ |= self.__dict__
        for name in ("temperature", "greedy", "min_p", "top_p", "top_k"):
            setattr(chosen, name, getattr(self, name)[rows])
        chosen.bends = self.bends.of(rows)
        return chosen

    def sample(
        self, logits: Tensor, uniform: Tensor, position: Tensor, *, moments: bool = False, topk: int = 0
    ) -> tuple[Tensor, ...]:
        """Return token, log-prob and entropy (nats) of each row, [R, V] to [R]; overwrites the logits.

        `position` counts the tokens of the completion so far, [R]. Behind the entropy come the MOMENTS
        (trainer/statistics) where asked for, then log-probs and ids of the `topk` likeliest tokens. All these are of
        the whole policy at the row's temperature, neither bent nor truncated. Last, unless all rows are `plain`, comes
        the log-prob under what the token was drawn from.
        """
        centred = logits.float()
        centred.sub_(centred.amax(-1, keepdim=True))
        if self.scales:
            centred.div_(self.temperature)
        likeliest = centred.argmax(-1) if self.any_greedy else None
        raw = centred.clone() if self.bends else None
        mass = centred.clamp_min_(LOWEST).exp()
        total = mass.sum(-1)
        entropy = total.log() - centred.mul_(mass).sum(-1) / total
        known = [entropy, *(_moments(mass, centred, total, entropy) if moments else ()), *_likeliest(mass, total, topk)]
        drawn, whole = (mass, total) if raw is None else self._bent(raw, position)
        if self.truncates:
            drawn.masked_fill_(drawn < self._threshold(drawn, whole), 0)
        token = draw(drawn, uniform)
        if likeliest is not None:
            token = torch.where(self.greedy, likeliest, token)
        logprob = (mass.gather(1, token[:, None]).squeeze(1) / total).log()
        if raw is not None:  # bent, even a token whose mass underflows may come
            direct = raw.gather(1, token[:, None]).squeeze(1) - total.log()
            logprob = torch.where(logprob.isfinite(), logprob, direct)
        return token, logprob, *known, *(() if self.plain else (self._behaviour(drawn, token),))

    def _bent(self, centred: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return bent masses, [R, V], the largest 1, and their sum [R]."""
        bent = self.bends.apply(centred, position)
        mass = (bent - bent.amax(-1, keepdim=True)).exp_()
        return mass, mass.sum(-1)

    def _behaviour(self, drawn: Tensor, token: Tensor) -> Tensor:
        """Return the log-prob of each row's token under the masses it was drawn with, [R]; 0 where it is greedy."""
        logprob = (drawn.gather(1, token[:, None]).squeeze(1) / drawn.sum(-1)).log()
        return logprob.masked_fill(self.greedy, 0.0)

    def _threshold(self, mass: Tensor, total: Tensor) -> Tensor:
        """Return the least mass that min-p, top-k and top-p leave, each taken on all of the masses, [R, 1].

        The likeliest token has mass 1, `total` [R] is the sum. Tokens as likely as the last one kept are kept too.
        """
        if not self.ranks:
            return self.min_p
        count = min(LIKELIEST, mass.shape[1])
        ordered = mass.topk(count).values
        if count < mass.shape[1]:
            enough = torch.where(self.top_p < 1, ordered.sum(-1, keepdim=True) >= self.top_p * total[:, None], False)
            enough |= (self.top_k > 0) & (self.top_k <= count)
            if not bool((enough | (self.top_p >= 1) & (self.top_k == 0)).all()):
                ordered = mass.sort(-1, descending=True).values
        rank = torch.arange(ordered.shape[1], device=mass.device)
        before = ordered.cumsum(-1) - ordered  # mass in front of each token: the first token always stays
        keep = (before < self.top_p * total[:, None]) & ((rank < self.top_k) | (self.top_k == 0)) | (rank == 0)
        floor = ordered.masked_fill(~keep, torch.inf).amin(-1, keepdim=True)
        floor = floor.masked_fill((self.top_p >= 1) & (self.top_k == 0), 0)
        return torch.maximum(self.min_p, floor)
