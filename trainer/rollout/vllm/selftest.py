"""Whether the tap tells the truth: its entropies against those of log-probs that vLLM gives for the whole vocabulary.

The tap stands on internals of vLLM, which a new version may move. What it must not do is go wrong in silence.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trainer.rollout.base import GenRequest, SamplerSpec

if TYPE_CHECKING:
    from trainer.rollout.vllm.driver import Driver

TOLERANCE = 1e-3  # nats; both come from the same logits
TOKENS = 3


def truthful(driver: Driver) -> bool:
    """Return whether the tap gives a short greedy completion the tokens, log-probs and entropies vLLM itself gives."""
    length = min(TOKENS, driver.longest - 1)
    told = driver.run([GenRequest(0, 0, 0, (1,), 0, length, SamplerSpec(temperature=0.0))])[0]
    ids, whole = _plain(driver, (1,), len(told.ids))
    if ids != told.ids:
        return False
    entropies = [-sum(value * math.exp(value) for value in row.values() if value > -math.inf) for row in whole]
    pairs = [*zip(told.entropy, entropies, strict=True)]
    pairs += [(own, row[token]) for own, row, token in zip(told.logprob, whole, ids, strict=True)]
    return all(abs(own - other) < TOLERANCE * (1 + abs(other)) for own, other in pairs)


def _plain(driver: Driver, prompt: tuple[int, ...], length: int) -> tuple[list[int], list[dict[int, float]]]:
    """Return the greedy tokens of vLLM's own sampler and the log-probs of every token at each place."""
    from vllm import SamplingParams

    llm: Any = driver.core.llm
    settings = SamplingParams(temperature=0.0, max_tokens=length, logprobs=-1, detokenize=False, ignore_eos=True)
    llm.add_request("selftest", {"prompt_token_ids": list(prompt)}, settings)
    outputs: list[Any] = []
    while llm.has_unfinished_requests():
        outputs += llm.step()
    found = outputs[-1].outputs[0]
    whole = [{token: entry.logprob for token, entry in row.items()} for row in found.logprobs]
    return list(found.token_ids), whole
