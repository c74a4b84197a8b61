"""A policy's weights under the names its checkpoint would have: what an engine with a copy of its own takes over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from trainer.policy import Policy


def unique(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state, those that share memory once, under their first name."""
    found: dict[Any, str] = {}
    for name, tensor in state.items():
        found.setdefault((tensor.data_ptr(), tensor.shape) if tensor.numel() else name, name)
    return {name: state[name].detach() for name in found.values()}


@torch.no_grad()
def weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of a policy under the base model's name, adapters merged; inside `policy.gathered()`.

    What modules share comes once. Only one merged tensor exists at a time, and the policy's own are left alone.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {name: module for name, module in policy.lm.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, tensor in unique(policy.placement.state_dict(policy.lm) or policy.lm.state_dict()).items():
        if ".lora_" in name:
            continue
        module = adapted.get(name.removesuffix(".base_layer.weight"))
        if module is not None and name.endswith(".base_layer.weight"):
            tensor = tensor + module.get_delta_weight("default").to(tensor)  # type: ignore[attr-defined]
        yield name.replace(".base_layer.", "."), tensor
