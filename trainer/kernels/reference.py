"""The definition: plain torch, written to be read, in whatever precision the operands have (float64 included).

It keeps [N, V] logits and is what tests and benchmarks compare the other rooms with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.kernels.definitions import EXTRAS, entropy_of
from trainer.kernels.fused import Loss, checked
from trainer.kernels.stats import TokenStats
from trainer.kernels.task import Task
from trainer.kernels.wants import Shape, Wants


def reference(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    target: Tensor,  # [N] int64
    inverse: Tensor,  # [N] 1 / temperature, wide
    bias: Tensor | None,  # [V]
    task: Task,
) -> TokenStats:
    """Return TokenStats from direct log_softmax of the whole logits; memory budgets have no meaning here."""
    z = final_logits(hidden, weight, bias, task.shape, inverse.dtype)  # [N, V]
    logits = z * inverse[:, None]
    logp = torch.log_softmax(logits, dim=-1)
    largest, argmax = logits.detach().max(dim=-1)
    entropy = entropy_of(logp)
    moments = _moments(logp.detach(), entropy.detach()) if task.wants.moments else {}
    return TokenStats(
        logprob=logp.gather(1, target[:, None]).squeeze(1),
        entropy=entropy,
        lse=torch.logsumexp(logits.detach(), dim=-1),
        sum_p2=moments.get("sum_p2"),
        sum_p2_logp=moments.get("sum_p2_logp"),
        entropy_gain=moments.get("entropy_gain"),
        max_logit=largest,
        argmax=argmax,
        **_rarer(z, target, inverse, task.wants),
    )


def reference_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    inverse: Tensor,
    bias: Tensor | None,
    loss: Loss,
    task: Task,
    weight_grad: Tensor | None = None,
) -> tuple[Tensor, TokenStats]:
    """Return the sum of the losses by plain autograd, and the detached statistics."""
    apart = weight_grad is not None and torch.is_grad_enabled()
    weight = weight.detach().requires_grad_() if apart else weight
    stats = reference(hidden, weight, target, inverse, bias, task)
    total = checked(loss(stats, torch.arange(len(hidden), device=hidden.device)), len(hidden)).sum()
    if weight_grad is not None and apart:
        weight_grad += torch.autograd.grad(total, weight, retain_graph=True)[0]
    return total, stats.detach()


def final_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, wide: torch.dtype) -> Tensor:
    """Return softcap tanh(scale (hidden @ weight.T + bias) / softcap), before any temperature."""
    z = hidden.to(wide) @ weight.to(wide).T
    z = (z if bias is None else z + bias.to(wide)) * shape.scale
    return z if shape.softcap is None else shape.softcap * torch.tanh(z / shape.softcap)


def _moments(logp: Tensor, entropy: Tensor) -> dict[str, Tensor]:
    p, finite = logp.exp(), logp.masked_fill(logp == -torch.inf, 0)
    return {
        "sum_p2": p.square().sum(-1),
        "sum_p2_logp": (p * p * finite).sum(-1),
        "entropy_gain": (p * (finite + entropy[:, None])).square().sum(-1),
    }


def _rarer(z: Tensor, target: Tensor, inverse: Tensor, wants: Wants) -> dict[str, Tensor]:
    options = {
        "second_temperature": wants.second,
        "min_p": wants.min_p,
        "top_p": wants.top_p,
        "nucleus_crossing": wants.crossing,
    }
    named = {
        "logprob2": ("tempered_logprob", wants.second),
        "entropy2": ("tempered_entropy", wants.second),
        "kept_mass": ("kept_mass", wants.min_p),
        "kept_logprob": ("kept_logprob", wants.min_p),
        "nucleus_entropy": ("nucleus_entropy", wants.top_p),
    }
    heat = 1 / inverse[:, None]
    return {
        field: EXTRAS[name](z, target, heat, options) for field, (name, wanted) in named.items() if wanted is not None
    }
