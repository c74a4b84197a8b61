"""Probe: whether an engine holds the policy's weights, as a fixed text tells that both score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trainer.rollout.base import Generation, GenRequest

if TYPE_CHECKING:
    from trainer.policy import Policy

TOKENS = 17  # of the text; all but the first are scored
PIECE = 2  # of them a request, one read with the prompt and one decoded: a probe takes two steps, not sixteen
PRIMES = 7919, 104729  # spread them over the vocabulary


def difference(
    policy: Policy, score: Callable[[Sequence[GenRequest]], list[Generation]], *, room: int | None = None
) -> float:
    """Return the largest difference between an engine's and the policy's log-probs of the text, nats.

    `room` is the number of tokens of the longest sequence that the engine takes.
    """
    from trainer.policy import Trajectory

    size = min(TOKENS, room or TOKENS, policy.context or TOKENS)
    ids = tuple((PRIMES[0] * place + PRIMES[1]) % policy.vocabulary for place in range(size))
    pieces = [
        GenRequest(id=at, group=at, sample=0, prompt_ids=ids[:at], prefix_ids=ids[at : at + PIECE], seed=0, max_new=0)
        for at in range(1, size, PIECE)
    ]
    theirs = [value for generation in score(pieces) for value in generation.logprob]
    ours = policy.score([Trajectory(ids[:1], ids[1:])], 1.0)["logprob"].tolist()
    return max(abs(one - other) for one, other in zip(theirs, ours, strict=True))
