"""EXTRAS: the rarer statistics of softmax(logits / temperature), defined in plain torch on whole logits.

The reference room is made of these; the other rooms compute the same in passing. All are differentiable by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.kernels.wants import REMOVED

TOP = 5


def _max_logprob(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return torch.log_softmax(z / heat, -1).amax(-1)


def _mean_logit(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return (z / heat).mean(-1)


def _logsumexp(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return torch.logsumexp(z / heat, -1)


def _token_logit(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return z.gather(1, target[:, None]).squeeze(1)


def _top5_prob(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return torch.softmax(z / heat, -1).topk(min(TOP, z.shape[1]), -1).values.sum(-1) / TOP


def _tempered_logprob(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return _token_logit(torch.log_softmax(z / options["second_temperature"], -1), target, heat, options)


def _tempered_entropy(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return entropy_of(torch.log_softmax(z / options["second_temperature"], -1))


def _kept(z: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    p = torch.softmax(z / heat, -1)
    return p >= options["min_p"] * p.amax(-1, keepdim=True)


def _kept_mass(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    return (torch.softmax(z / heat, -1) * _kept(z, heat, options)).sum(-1)


def _kept_logprob(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    logits = torch.where(_kept(z, heat, options), z / heat, REMOVED)
    return _token_logit(torch.log_softmax(logits, -1), target, heat, options)


def _nucleus_entropy(z: Tensor, target: Tensor, heat: Tensor, options: Mapping[str, Any]) -> Tensor:
    """SIREN (2509.25133): tokens strictly before the cumulative mass reaches top_p; none left gives 0.

    Tokens that tie with the last one inside are inside.
    """
    p = torch.softmax(z / heat, -1)
    ordered = p.detach().sort(-1, descending=True).values
    mass = ordered.cumsum(-1)
    before = mass - ordered if options.get("nucleus_crossing") else mass
    last = (before < options["top_p"]).sum(-1, keepdim=True)
    kept = (p >= ordered.gather(-1, (last - 1).clamp(min=0))) & (last > 0)
    chosen = torch.where(kept, p, 0)
    q = chosen / (chosen.sum(-1, keepdim=True) + 1e-12)
    return -(q * (q + 1e-12).log()).sum(-1)


def entropy_of(logp: Tensor) -> Tensor:
    """Return -sum p log p of rows of log-probs; a banned token adds 0, to the value and to the gradient."""
    banned = logp == -torch.inf
    finite = logp.masked_fill(banned, 0)
    return -(finite.exp() * ~banned * finite).sum(-1)


Statistic = Callable[[Tensor, Tensor, Tensor, Mapping[str, Any]], Tensor]
EXTRAS: dict[str, Statistic] = {
    "max_logprob": _max_logprob,
    "mean_logit": _mean_logit,
    "logsumexp": _logsumexp,
    "token_logit": _token_logit,
    "top5_prob": _top5_prob,
    "tempered_logprob": _tempered_logprob,
    "tempered_entropy": _tempered_entropy,
    "kept_mass": _kept_mass,
    "kept_logprob": _kept_logprob,
    "nucleus_entropy": _nucleus_entropy,
}
