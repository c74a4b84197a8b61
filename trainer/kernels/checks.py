"""What linear_logprob_entropy refuses: every message names the argument and says what to give instead."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.kernels.task import Task


def check_operands(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError where shapes, dtypes or devices do not fit."""
    if hidden.ndim < 1 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1] or not len(weight):
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} do not fit; give [..., H] and [V, H]"
        )
    if target.shape != hidden.shape[:-1]:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; give one token for each of {tuple(hidden.shape[:-1])} positions"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; give one number for each of {len(weight)} tokens")
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise ValueError(f"target is {target.dtype}; give token numbers as integers")
    if not hidden.dtype.is_floating_point:
        raise ValueError(f"hidden is {hidden.dtype}; give floating point numbers")
    for name, operand in (("weight", weight), ("bias", bias)):
        if operand is not None and operand.dtype != hidden.dtype:
            raise ValueError(f"hidden is {hidden.dtype} and {name} is {operand.dtype}; cast one of them")
    for name, operand in (("weight", weight), ("target", target), ("bias", bias)):
        if operand is not None and operand.device != hidden.device:
            raise ValueError(f"hidden is on {hidden.device} and {name} on {operand.device}; move one of them")


def check_options(task: Task) -> None:
    """Raise ValueError where a number is out of its range."""
    shape, wants = task.shape, task.wants
    if not math.isfinite(shape.scale):
        raise ValueError(f"logit_scale is {shape.scale}; give a finite number")
    if shape.softcap is not None and not 0 < shape.softcap < math.inf:
        raise ValueError(f"softcap is {shape.softcap}; it bounds the logits and must be above 0; None leaves them")
    if wants.second is not None and not 0 < wants.second < math.inf:
        raise ValueError(f"second_temperature is {wants.second}; it divides the logits and must be above 0")
    for name, share in (("min_p", wants.min_p), ("top_p", wants.top_p)):
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}; give a probability, from 0 to 1")
    if task.chunk_bytes is not None and task.chunk_bytes < 1:
        raise ValueError(f"chunk_bytes is {task.chunk_bytes}; it must be at least 1")
    if task.keep_bytes < 0:
        raise ValueError(f"keep_bytes is {task.keep_bytes}; it must be at least 0, which keeps no logits")


def check_weight_grad(weight_grad: Tensor | None, weight: Tensor, wide: torch.dtype) -> None:
    """Raise ValueError where the gradient's memory does not fit the weight."""
    if weight_grad is None:
        return
    if weight_grad.shape != weight.shape or weight_grad.dtype != wide or weight_grad.device != weight.device:
        raise ValueError(
            f"weight_grad is {weight_grad.dtype} {tuple(weight_grad.shape)} on {weight_grad.device}; give {wide} "
            f"{tuple(weight.shape)} on {weight.device}"
        )


def inverse_of(temperature: float | Tensor, target: Tensor, wide: torch.dtype) -> Tensor:
    """Return 1 / temperature of each row, [N]; NaN where a temperature on CUDA is not above 0."""
    if not isinstance(temperature, Tensor):
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; it divides the logits and must be above 0")
        return torch.full((target.numel(),), 1 / temperature, dtype=wide, device=target.device)
    if temperature.ndim and temperature.shape != target.shape:
        raise ValueError(
            f"temperature has shape {tuple(temperature.shape)}; give a number or one for each of "
            f"{tuple(target.shape)} positions"
        )
    if temperature.ndim and temperature.device != target.device:
        raise ValueError(f"temperature is on {temperature.device} and target on {target.device}; move one of them")
    fits = (temperature > 0) & (temperature < torch.inf)
    if not temperature.is_cuda and not bool(fits.all()):
        raise ValueError("temperature holds a number that is not above 0 and finite; it divides the logits")
    inverse = torch.where(fits, 1 / temperature.to(wide), torch.nan).to(target.device)
    return inverse.expand(target.shape).reshape(-1)


def safe_target(target: Tensor, inverse: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return targets inside the vocabulary; one that was not makes its row NaN on CUDA and raises elsewhere."""
    inside = target.clamp(0, vocabulary - 1)
    if target.is_cuda:
        return inside, torch.where(inside == target, inverse, torch.nan)
    if not torch.equal(inside, target):
        wrong = int(target[inside != target][0])
        raise ValueError(
            f"target holds {wrong}, outside the vocabulary of {vocabulary} tokens; mask such positions with "
            "ignore_index or drop them"
        )
    return target, inverse
