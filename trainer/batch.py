"""TokenBatch: the one record every part of an objective reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class TokenBatch:
    """N response tokens of S completions, flat, without padding; rows of one completion are consecutive and in order.

    They are the tokens that count: context inside a completion (Trajectory.counts) has no row here, yet `position` and
    `length` are those of the whole completion, as its text and its limit of tokens have them.

    It spans the whole optimiser step (all micro-batches, all processes), so every statistic an objective takes over
    it is a statistic of the step. All log-probs are natural logs at the training temperature; entropy is over the
    full vocabulary, in nats. Floating tensors share one dtype (float64 allowed) and one device.
    """

    logprob: Tensor  # [N] current policy; requires grad inside Objective.apply
    sequence: Tensor  # [N] int64, which completion
    position: Tensor  # [N] int64, position within the completion, context tokens in between counted too
    group: Tensor  # [S] int64, which prompt
    reward: Tensor  # [S]
    length: Tensor  # [S] int64, response tokens, context included
    entropy: Tensor | None = None  # [N] current policy; requires grad inside Objective.apply
    old_logprob: Tensor | None = None  # [N] step-start policy
    old_entropy: Tensor | None = None  # [N]
    engine_logprob: Tensor | None = None  # [N] raw policy in the engine's numbers, whatever the draw was bent by
    ref_logprob: Tensor | None = None  # [N] reference policy
    sum_p2: Tensor | None = None  # [N] sum over the vocabulary of p^2, current policy
    sum_p2_logp: Tensor | None = None  # [N] sum of p^2 log p
    advantage: Tensor | None = None  # [N] after the advantage stages; detached
    mask: Tensor | None = None  # [N] float 0/1: tokens that count (padding never enters; None means all)
    valid: Tensor | None = None  # [S] bool: False keeps a completion out of group statistics and loss (None reward)
    truncated: Tensor | None = None  # [S] bool: cut off at max_completion_tokens
    auxiliary: Tensor | None = None  # [S] bool: drawn by an auxiliary sampling plan (AEPO, SCOPE-RL), not the main one
    clip_low: Tensor | None = None  # [N] the token's own clip where a ClipRange part set one
    clip_high: Tensor | None = None  # [N]
    extra: dict[str, Tensor] = field(default_factory=dict)  # rarer statistics by name, [N] or [S] (trainer/statistics)

    def need(self, field: str) -> Tensor:
        """Return a field that has to be there; raises ValueError naming it."""
        value = getattr(self, field)
        if value is None:
            raise ValueError(f"the batch lacks {field}")
        return value

    @property
    def tokens(self) -> int:
        return self.logprob.shape[0]

    @property
    def sequences(self) -> int:
        return self.group.shape[0]

    def replace(self, **changes: Any) -> TokenBatch:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def per_token(self, per_sequence: Tensor) -> Tensor:
        """Spread [S] over [N]."""
        return per_sequence[self.sequence]

    def per_sequence_sum(self, per_token: Tensor) -> Tensor:
        """Sum [N] into [S]; a completion without tokens gets 0."""
        return per_token.new_zeros(self.sequences).index_add(0, self.sequence, per_token)
