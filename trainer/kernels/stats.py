"""TokenStats: what every room returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenStats:
    """Statistics of softmax(logits / temperature) at N positions; natural logs, nats, float32 at least.

    `logprob` and `entropy` are differentiable, the rest is detached. The moments are None unless asked for.
    """

    logprob: Tensor  # [N] log p of the target
    entropy: Tensor  # [N] -sum p log p over the full vocabulary
    lse: Tensor  # [N] log sum exp(logits / temperature)
    sum_p2: Tensor | None  # [N] sum p^2
    sum_p2_logp: Tensor | None  # [N] sum p^2 log p
    entropy_gain: Tensor | None  # [N] sum p^2 (log p + entropy)^2: squared norm of the entropy's gradient by the logits
    max_logit: Tensor  # [N] largest logits / temperature; exp(max_logit - lse) is the largest probability
    argmax: Tensor  # [N] int64, a likeliest token
