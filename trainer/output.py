"""OutputLayer: from hidden states to statistics of tokens, and back with gradients that are known beforehand.

Some models scale or cap their logits after the output layer; what their config says of it is compared with the model's
own logits once, so a form nobody knows of is refused instead of trained wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.budgets import KEPT_BYTES
from trainer.errors import ConfigError
from trainer.kernels import (
    TokenStats,
    choose_room,
    gradient_features,
    head_of,
    linear_extras,
    linear_logprob_entropy,
    linear_token_loss,
    squared_hellinger,
)
from trainer.kernels.extras import FIELDS, OPTIONS
from trainer.kernels.rooms import RoomName

Contract = Literal["auto", "fused", "kept", "recompute"]


class OutputLayer:
    """The output layer of a causal language model; `contract` and `room` are settings of ResourcesConfig."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.form = head_of(lm.config)
        self.contract: Contract = "auto"
        self.room: RoomName = "auto"
        self.accumulator: Callable[[Tensor], Tensor | None] | None = None  # where a weight's gradient is summed up

    def use(self, contract: Contract, room: RoomName) -> None:
        """Take over the settings; raises ConfigError where the room cannot compute on this device."""
        try:
            choose_room(self.weight.device, room)
        except ValueError as error:
            raise ConfigError(f"resources.kernel: {error}", "resources.kernel") from error
        self.contract, self.room = contract, room

    @property
    def weight(self) -> Tensor:
        """Return the weight, [V, H]."""
        return self.lm.get_output_embeddings().weight

    @property
    def bias(self) -> Tensor | None:
        """Return the bias, [V], or None."""
        return getattr(self.lm.get_output_embeddings(), "bias", None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states, [R, H] to [R, V], as the model itself would."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if (scale := self.form["logit_scale"]) != 1:
            logits = logits * scale
        cap = self.form["softcap"]
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def statistics(
        self, states: Tensor, target: Tensor, temperature: float, names: Collection[str], options: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Return the named statistics of each token, [n, H] and [n] to [n] each, without gradient."""
        return linear_extras(
            states, self.weight, target, names=names, options=options, temperature=temperature, bias=self.bias,
            room=self.room, **self.form,
        )  # fmt: skip

    def loss(
        self,
        states: Tensor,
        target: Tensor,
        temperature: float,
        slopes: Mapping[str, Tensor],
        options: Mapping[str, Any],
    ) -> tuple[Tensor, TokenStats]:
        """Return a number whose gradients by the tokens' statistics are `slopes`, [n] each, and the statistics.

        The fused contract turns a chunk of logits into gradients while it is there; the others compute the logits once
        more in the backward pass, or keep KEPT_BYTES of them.
        """

        def weighted(stats: TokenStats, rows: Tensor) -> Tensor:
            values = ((slope[rows], FIELDS[name](stats, temperature)) for name, slope in slopes.items())
            terms = [slope.to(value) * value for slope, value in values if value is not None]
            return torch.stack(terms).sum(0)

        wanted = {OPTIONS[name]: options[OPTIONS[name]] for name in slopes if name in OPTIONS}
        crossing = bool(options.get("nucleus_crossing"))
        if self.contract in ("auto", "fused"):
            summed = self.accumulator(self.weight) if self.accumulator else None
            return linear_token_loss(
                states, self.weight, target, weighted, temperature=temperature, bias=self.bias, room=self.room,
                nucleus_crossing=crossing, weight_grad=summed, **self.form, **wanted,
            )  # fmt: skip
        stats = linear_logprob_entropy(
            states, self.weight, target, temperature=temperature, bias=self.bias, room=self.room,
            nucleus_crossing=crossing, keep_bytes=KEPT_BYTES if self.contract == "kept" else 0,
            **self.form, **wanted,
        )  # fmt: skip
        total = weighted(stats, torch.arange(len(target), device=target.device)).sum()
        return total, replace(stats, logprob=stats.logprob.detach(), entropy=stats.entropy.detach())

    def features(self, states: Tensor, target: Tensor, owner: Tensor, completions: int, temperature: float) -> Tensor:
        """Return the mean over each completion of d logprob / d hidden, [n, H] to [s, H]."""
        return gradient_features(
            states, self.weight, target, owner, completions, temperature=temperature, bias=self.bias, **self.form
        )

    def hellinger(self, states: Tensor, other: OutputLayer, others: Tensor, temperature: float) -> Tensor:
        """Return the squared Hellinger distance of each token's distribution to another layer's, [n]."""
        ours, theirs = (states, self.weight, self.bias), (others, other.weight, other.bias)
        return squared_hellinger(ours, theirs, temperature=temperature, **self.form)

    @torch.no_grad()
    def check(self, hidden: Tensor, logits: Tensor, tolerance: float) -> None:
        """Raise ConfigError where the logits made here of hidden states differ from the model's own, [..., V]."""
        ours, theirs = self.logits(hidden).float(), logits.float()
        slack = tolerance * (1 + float(theirs.abs().max()))
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=slack):
            raise ConfigError(
                f"model.source: {type(self.lm).__name__} changes its logits after the output layer in a way that is "
                "neither a scale nor a soft-cap, which is not supported; choose another model",
                "model.source",
            )
