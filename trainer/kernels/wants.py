"""What one pass over the head is asked for: how logits are made (Shape) and which figures of a row are wanted (Wants).

With x = hidden @ weight.T, a row's numbers are

    z = cap(scale (x + bias)),  cap(v) = softcap tanh(v / softcap)      the logits
    s = z inverse                                                       inverse = 1 / temperature, per row
    m = max s,  u = s - m,  S = sum e^u,  l = u - log S = log p

and every figure and gradient is a sum over e^u, so a constant added to the logits changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST = -1e30  # stands for log 0 where it meets a probability of 0: 0 * LOWEST is 0, 0 * -inf is NaN
REMOVED = -1e4  # logit of a token that min-p takes away, as in the reference code


@dataclass(frozen=True)
class Shape:
    """What happens to hidden @ weight.T + bias before it is divided by the temperature."""

    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class Wants:
    """Which figures of a row are wanted besides logprob and entropy."""

    moments: bool = False
    second: float | None = None  # second temperature, of the logits before the first
    min_p: float | None = None
    top_p: float | None = None
    crossing: bool = False  # the nucleus keeps the token at which its mass reaches top_p

    @property
    def figures(self) -> tuple[str, ...]:
        """Return the names of a row's figures, in the order in which `row_statistics` stacks them."""
        return (
            *("logprob", "entropy", "lse", "max_logit", "log_sum"),
            *(("sum_p2", "sum_p2_logp", "entropy_gain") if self.moments else ()),
            *(("logprob2", "entropy2", "log_sum2") if self.second is not None else ()),
            *(("kept_mass", "kept_logprob", "target_kept") if self.min_p is not None else ()),
            *(("nucleus_entropy", "nucleus_mass", "nucleus_cut") if self.top_p is not None else ()),
        )

    @property
    def differentiable(self) -> tuple[str, ...]:
        """Return the names of the figures that carry a gradient."""
        carried = ("logprob", "entropy", "logprob2", "entropy2", "kept_mass", "kept_logprob", "nucleus_entropy")
        return tuple(name for name in carried if name in self.figures)

    @property
    def scalars(self) -> tuple[str, ...]:
        """Return the names of a row's scalars, in the order in which `row_scalars` stacks them."""
        return (
            *("max_logit", "log_sum", "hot", "a0", "a1"),
            *(("log_sum2", "b0", "b1") if self.second is not None else ()),
            *(("kept0",) if self.min_p is not None else ()),
            *(("nucleus_cut", "nucleus0", "nucleus1") if self.top_p is not None else ()),
        )

    @property
    def kept_cut(self) -> float:
        """Return the u from which min-p keeps a token: p >= min_p * largest p is u >= log min_p."""
        return math.log(self.min_p) if self.min_p else -math.inf


def row_scalars(
    figures: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None], inverse: Tensor, wants: Wants
) -> Tensor:
    """Return the coefficients of the gradient by s, [len(wants.scalars), n], from d loss / d figure.

    d loss / d s_j = p (a0 + a1 l + [u >= kept_cut] kept0 + [u >= nucleus_cut] (nucleus0 + nucleus1 l))
                     + p2 (b0 + b1 l2) + hot [j == target],

    where l2 = u second_ratio - log_sum2, p2 = e^l2 and second_ratio = 1 / (second inverse).
    """

    def upstream(name: str) -> Tensor:
        found = gradients.get(name)
        return torch.zeros_like(inverse) if found is None else found.to(inverse.dtype)

    g_entropy, hot = upstream("entropy"), upstream("logprob")
    found = {"max_logit": figures["max_logit"], "log_sum": figures["log_sum"], "a1": -g_entropy}
    a0 = -hot - g_entropy * figures["entropy"]
    if wants.second is not None:
        ratio = second_ratio(inverse, wants)
        g_logprob, g_entropy = ratio * upstream("logprob2"), ratio * upstream("entropy2")
        found |= {"log_sum2": figures["log_sum2"], "b0": -g_logprob - g_entropy * figures["entropy2"], "b1": -g_entropy}
        hot = hot + g_logprob
    if wants.min_p is not None:
        mass, g_mass, g_logprob = figures["kept_mass"], upstream("kept_mass"), upstream("kept_logprob")
        a0 = a0 - g_mass * mass
        hot = hot + g_logprob * figures["target_kept"]
        found["kept0"] = g_mass - g_logprob / mass
    if wants.top_p is not None:
        mass, empty = figures["nucleus_mass"], figures["nucleus_mass"] == 0
        slope = (-upstream("nucleus_entropy") / mass).masked_fill(empty, 0)
        offset = (slope * (figures["nucleus_entropy"] - mass.log())).masked_fill(empty, 0)
        found |= {"nucleus_cut": figures["nucleus_cut"], "nucleus0": offset, "nucleus1": slope}
    found |= {"a0": a0, "hot": hot}
    return torch.stack([found[name] for name in wants.scalars])


def second_ratio(inverse: Tensor, wants: Wants) -> Tensor:
    """Return what u is multiplied by at the second temperature, [n]."""
    assert wants.second is not None
    return 1 / (inverse * wants.second)
