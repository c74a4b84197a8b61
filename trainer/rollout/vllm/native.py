"""vLLM draws by itself, where the tap is not to be trusted: log-probs of the likeliest tokens bound the entropy.

Only plain samplers: vLLM's log-probs are of what it drew from, so those of a truncated distribution would pass for the
policy's. Equal seeds draw equal numbers of vLLM's own, in requests of equal prompts and settings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainer.errors import ConfigError
from trainer.rollout.base import Chunk, Generation, GenRequest
from trainer.rollout.ledger import Ledger, OnChunk, OnProgress
from trainer.rollout.vllm.bounds import interval

if TYPE_CHECKING:
    from trainer.rollout.vllm.driver import Driver

TOP = 20  # likeliest tokens asked for: vLLM's own limit by default
SEEDS = 1 << 63


class BoundsLedger(Ledger):
    """A ledger that also keeps between what each entropy lies."""

    def __init__(
        self,
        requests: Sequence[GenRequest],
        stop_ids: Collection[int],
        on_chunk: OnChunk | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Raises ConfigError for a request that vLLM cannot draw plainly."""
        for request in requests:
            if not request.sampler.plain:
                raise ConfigError(
                    "sampling.vllm.entropy: with bounds, vLLM draws from the whole policy alone; leave top_p, top_k, "
                    "min_p, typical_p and modifiers out, or choose exact",
                    "sampling.vllm.entropy",
                )
        super().__init__(requests, stop_ids, on_chunk, on_progress)
        self.moments, self.topk, self.names = False, 0, ("logprob", "entropy")
        self.known = self.known[..., :2]
        self.bounds = np.zeros((*self.ids.shape, 2), dtype=np.float32)

    def put(self, index: int, token: int, logprob: float, low: float, high: float) -> None:
        """Add a token to a request, with its log-prob and the bounds of its entropy."""
        self.bounds[index, self.lengths[index]] = low, high
        self.record(np.array([index]), np.array([token]), np.array([[logprob, (low + high) / 2]], dtype=np.float32))

    def _chunk(self, index: int) -> Chunk:
        chunk = super()._chunk(index)
        start = chunk.first - int(self.first[index])
        low, high = self.bounds[index, start : start + len(chunk.ids)].T.tolist()
        return replace(chunk, low=low, high=high)

    def _generation(self, index: int, version: int) -> Generation:
        generation = super()._generation(index, version)
        low, high = self.bounds[index, : len(generation.ids)].T.tolist()
        return replace(generation, estimator="bounds", low=low, high=high)


def complete(driver: Driver, ledger: BoundsLedger) -> None:
    """Run the waiting requests to their ends."""
    llm: Any = driver.core.llm
    vocabulary = llm.model_config.get_vocab_size()
    names = [_add(llm, ledger, index) for index in ledger.waiting()]
    try:
        with _eager(driver.device):
            while llm.has_unfinished_requests():
                for output in llm.step():
                    _record(ledger, output, vocabulary)
                ledger.report()
    except BaseException:
        llm.abort_request(names, internal=True)
        raise


def _eager(device: torch.device) -> AbstractContextManager[Any]:
    """Compile nothing on a CPU: one small function would take a minute. On a GPU the model itself is compiled."""
    return torch.compiler.set_stance("force_eager") if device.type == "cpu" else nullcontext()


def _add(llm: Any, ledger: Ledger, index: int) -> str:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    request, top = ledger.requests[index], min(TOP, llm.model_config.get_vocab_size())
    settings = SamplingParams(
        temperature=request.sampler.temperature, seed=request.seed % SEEDS, logprobs=top, detokenize=False,
        max_tokens=int(ledger.limits[index] - ledger.lengths[index]), stop_token_ids=ledger.stop.tolist(),
        ignore_eos=True, output_kind=RequestOutputKind.DELTA,
    )  # fmt: skip
    return llm.add_request(str(index), {"prompt_token_ids": list(ledger.given(index))}, settings)


def _record(ledger: BoundsLedger, output: Any, vocabulary: int) -> None:
    new = output.outputs[0]
    for token, row in zip(new.token_ids, new.logprobs, strict=True):
        # a token from further down comes on top of the likeliest, and says nothing of those between
        likeliest = sorted((entry.logprob for entry in row.values()), reverse=True)[:TOP]
        low, high = interval(likeliest, vocabulary)
        ledger.put(int(output.request_id), token, row[token].logprob, low, high)
