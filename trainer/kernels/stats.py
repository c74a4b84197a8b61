"""TokenStats: what every room returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from torch import Tensor


@dataclass(frozen=True)
class TokenStats:
    """Statistics of softmax(logits / temperature) at N positions; natural logs, nats, float32 at least.

    `logprob`, `entropy`, `logprob2`, `entropy2`, `kept_mass`, `kept_logprob` and `nucleus_entropy` are differentiable,
    the rest is detached. What was not asked for is None. Rows that were ignored hold zeros.
    """

    logprob: Tensor  # [N] log p of the target
    entropy: Tensor  # [N] -sum p log p over the full vocabulary
    lse: Tensor  # [N] log sum exp(logits / temperature)
    sum_p2: Tensor | None  # [N] sum p^2
    sum_p2_logp: Tensor | None  # [N] sum p^2 log p
    entropy_gain: Tensor | None  # [N] sum p^2 (log p + entropy)^2: squared norm of the entropy's gradient by the logits
    max_logit: Tensor  # [N] largest logits / temperature; exp(max_logit - lse) is the largest probability
    argmax: Tensor  # [N] int64, a likeliest token
    logprob2: Tensor | None = None  # [N] log p of the target under softmax(logits / second_temperature)
    entropy2: Tensor | None = None  # [N] entropy of the same
    kept_mass: Tensor | None = None  # [N] mass of the tokens with p >= min_p * largest p
    kept_logprob: Tensor | None = None  # [N] log p of the target among them; about -1e4 where it is not one of them
    nucleus_entropy: Tensor | None = None  # [N] entropy of the nucleus, renormalised

    def map(self, change: Callable[[Tensor], Tensor]) -> TokenStats:
        """Return the same with every statistic that is there replaced by `change` of it."""
        there: dict[str, Tensor] = {
            field.name: change(value) for field in fields(self) if (value := getattr(self, field.name)) is not None
        }
        return replace(self, **there)

    def detach(self) -> TokenStats:
        """Return the same without gradients."""
        return self.map(Tensor.detach)
