"""The definition: plain torch, written to be read, in whatever precision the operands have (float64 included).

It keeps [N, V] logits and is what tests and benchmarks compare the other rooms with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.kernels.stats import TokenStats


def reference(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    target: Tensor,  # [N]
    *,
    temperature: Tensor,  # [] or [N]
    bias: Tensor | None,  # [V]
    moments: bool,
    chunk_bytes: int,
) -> TokenStats:
    """Return TokenStats from direct log_softmax of the whole logits; `chunk_bytes` has no meaning here."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(wide) @ weight.to(wide).T  # [N, V]
    if bias is not None:
        logits = logits + bias.to(wide)
    logits = logits / temperature.to(wide).reshape(-1, 1)
    logp = torch.log_softmax(logits, dim=-1)
    finite = logp.masked_fill(logp == -torch.inf, 0)  # a banned token has p = 0, and 0 * log 0 is 0
    p = finite.exp() * (logp != -torch.inf)
    rows = torch.arange(target.shape[0], device=target.device)
    largest, argmax = logits.detach().max(dim=-1)
    entropy = -(p * finite).sum(-1)
    return TokenStats(
        logprob=logp[rows, target],
        entropy=entropy,
        lse=torch.logsumexp(logits.detach(), dim=-1),
        sum_p2=p.detach().square().sum(-1) if moments else None,
        sum_p2_logp=(p * p * finite).detach().sum(-1) if moments else None,
        entropy_gain=(p * (finite + entropy[:, None])).detach().square().sum(-1) if moments else None,
        max_logit=largest,
        argmax=argmax,
    )
