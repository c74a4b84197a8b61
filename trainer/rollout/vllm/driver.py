"""Driving vLLM's engine by hand: add requests, step, look at every token. Knows nothing of a trainer.

Requests are drawn by the project's own sampler through the tap, so they mean what they mean to the `hf` engine: equal
seeds draw equal numbers, entropies are exact, log-probs are at the sampling temperature and before truncation. What is
not promised is equal tokens: vLLM batches and rounds as its load has it, and a token whose number falls within that
rounding of a boundary may become its neighbour.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.budgets import DRAWN_BYTES
from trainer.errors import ConfigError, ResourceError, RunFailed
from trainer.rollout.base import Caps, Generation, GenRequest, SamplerSpec, TapSpec
from trainer.rollout.hf import TOPK_MAX
from trainer.rollout.ledger import Ledger, OnChunk, OnProgress
from trainer.rollout.randomness import uniforms
from trainer.rollout.sampling import Samplers
from trainer.rollout.settings import VllmConfig
from trainer.rollout.vllm import native, weights
from trainer.rollout.vllm.native import BoundsLedger
from trainer.rollout.vllm.selftest import truthful
from trainer.rollout.vllm.start import start
from trainer.rollout.vllm.tap import Tap

logger = logging.getLogger(__name__)
Choose = Callable[[np.ndarray, Tensor], tuple[Tensor, ...]]  # rows, logits [R, V] to token and statistics, [R] each


class Driver:
    """One engine of vLLM over one model; whoever owns it calls `refresh` before the first run."""

    def __init__(
        self,
        path: Path,
        settings: VllmConfig,
        *,
        dtype: str,
        device: torch.device,
        longest: int,
        stop_ids: Collection[int],
    ) -> None:
        """Start over the model in a folder; raises ConfigError or ResourceError (start.py)."""
        self.settings, self.device, self.longest, self.stop_ids = settings, device, longest, frozenset(stop_ids)
        self.core = start(path, settings, dtype=dtype, device=device, longest=longest)
        self.tap = Tap(self.core.runner)
        self.closed = self._checked = self._asleep = False
        self._names: frozenset[str] = frozenset()  # of the weights, as they first came
        self.exact = settings.entropy == "exact"
        try:
            self._test()
        except BaseException:
            self.close()
            raise

    @property
    def caps(self) -> Caps:
        """Return what can be done: less where vLLM draws by itself."""
        return Caps(
            exact_entropy=self.exact, per_request_sampler=self.exact, prefix=True,
            in_process=self.device.type == "cpu",  # on a GPU its kernels round float32 as they like (TF32)
            modifiers=self.exact, moments=self.exact, topk_max=TOPK_MAX if self.exact else 0,
        )  # fmt: skip

    @property
    def sleeps(self) -> bool:
        return self.device.type == "cuda" and self.settings.sleep

    def run(
        self,
        requests: Sequence[GenRequest],
        on_chunk: OnChunk | None = None,
        on_progress: OnProgress | None = None,
        *,
        version: int = 0,
    ) -> list[Generation]:
        """Return one Generation for each request, in order; raises ConfigError where one is too long."""
        ledger = self.ledger(requests, on_chunk, on_progress)
        self.go_on(ledger)
        return ledger.generations(version)

    def ledger(
        self, requests: Sequence[GenRequest], on_chunk: OnChunk | None = None, on_progress: OnProgress | None = None
    ) -> Ledger:
        """Return a ledger for `go_on`."""
        return (Ledger if self.exact else BoundsLedger)(requests, self.stop_ids, on_chunk, on_progress)

    def go_on(self, ledger: Ledger) -> None:
        """Complete what a ledger's requests still lack."""
        if isinstance(ledger, BoundsLedger):
            self._check_lengths(ledger)
            native.complete(self, ledger)
            return
        samplers = Samplers([request.sampler for request in ledger.requests], self.device)

        def choose(rows: np.ndarray, logits: Tensor) -> tuple[Tensor, ...]:
            return _sampled(samplers, ledger, rows, logits)

        self._generate(ledger, choose)

    def score(self, requests: Sequence[GenRequest], *, version: int = 0) -> list[Generation]:
        """Return statistics of the prefix tokens, at each request's temperature: generated again, with no choice.

        As many steps as the longest prefix has tokens, and the numerics of generating, which is what a comparison with
        the trainer is after.
        """
        again = [
            replace(
                one, prefix_ids=(), max_new=len(one.prefix_ids), watch=False, tap=TapSpec(),
                sampler=SamplerSpec(one.sampler.temperature or 1.0),
            )
            for one in requests
        ]  # fmt: skip
        ledger = Ledger(again, ())
        temperature = torch.tensor([one.sampler.temperature for one in again], device=self.device)

        def choose(rows: np.ndarray, logits: Tensor) -> tuple[Tensor, ...]:
            given = [requests[row].prefix_ids[place] for row, place in zip(rows, ledger.lengths[rows], strict=True)]
            token = torch.tensor(given, device=self.device)
            logp = (logits.float() / temperature[torch.from_numpy(rows)][:, None]).log_softmax(-1)
            entropy = torch.special.entr(logp.exp()).sum(-1)
            return token, logp.gather(1, token[:, None]).squeeze(1), entropy

        self._generate(ledger, choose)
        return ledger.generations(version)

    def sleep(self) -> None:
        """Give the GPU's memory back until `refresh`: weights and cache are dropped. On a CPU nothing happens."""
        if self.sleeps and not self._asleep and not self.closed:
            self.core.llm.sleep(level=2)
            self._asleep = True

    def refresh(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take over all weights, given under the names that checkpoints use, waking up where asleep.

        Memory comes back in this order: first the weights, all of which get new values, then the cache. Weights woken
        without new values would be uninitialised memory, and values pushed before waking go to memory that is not
        there. Raises RunFailed where a weight is missing, ResourceError where the trainer took the memory meanwhile.
        """
        if self._asleep:
            self._wake("weights")
        names = weights.load(self.core, tensors)
        self._names = self._names or names
        if odd := self._names ^ names:  # vLLM joins some weights into one and would not miss a part of it
            raise RunFailed(f"{len(odd)} weights came once and not again (such as {min(odd)}); resume the run")
        if self._asleep:
            self._wake("kv_cache")
        self._asleep = False
        if not self.core.llm.reset_prefix_cache():
            raise RunFailed("vLLM keeps keys and values of the old weights, as requests are left; resume the run")
        if self.exact and not self._checked:
            self._check()

    def close(self) -> None:
        """End the engine; may be called twice."""
        if not self.closed:
            self.closed = True
            if self._asleep:  # memory that is not mapped cannot be handed back: CUDA would call that an error
                with contextlib.suppress(RuntimeError):
                    self.core.llm.wake_up()
            self.tap.close()
            self.core.close()

    def _wake(self, what: str) -> None:
        try:
            self.core.llm.wake_up([what])
        except RuntimeError as error:  # the allocator's word for memory that is not to be had
            raise ResourceError(
                f"vLLM cannot wake up ({error}): the trainer left less than sampling.vllm.memory_share of the GPU; "
                "lower it, or optimiser.tokens_per_microbatch, and resume the run"
            ) from error

    def _generate(self, ledger: Ledger, choose: Choose) -> None:
        """Run the waiting requests to their ends, tokens chosen by `choose` and written into the ledger."""
        waiting = ledger.waiting()
        self._check_lengths(ledger)
        names: dict[str, int] = {}

        def draw(row_names: Sequence[str], live: np.ndarray, logits: Tensor) -> Tensor:
            rows = np.array([names[name] for name in row_names])
            token, *known = choose(rows, logits)
            where = np.flatnonzero(live)
            ledger.record(rows[where], token.cpu().numpy()[where], torch.stack(known, 1).cpu().numpy()[where])
            return token

        self.tap.draw = draw
        try:
            for index in waiting:
                names[self._add(ledger, index)] = index
            while self.core.llm.has_unfinished_requests():
                ended = self.core.llm.step()
                ledger.report()
                _compare(ended, ledger)
        except BaseException:
            self.core.llm.abort_request(list(names), internal=True)
            raise
        finally:
            self.tap.draw = None
        if not ledger.finished.all():
            raise ResourceError("vLLM left requests unfinished; resume the run, or choose hf for sampling.engine")

    def _add(self, ledger: Ledger, index: int) -> str:
        """Give vLLM one request and return the name it goes by there."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        given, left = ledger.given(index), int(ledger.limits[index] - ledger.lengths[index])
        settings = SamplingParams(
            max_tokens=left, stop_token_ids=ledger.stop.tolist(), ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        return self.core.llm.add_request(str(index), {"prompt_token_ids": list(given)}, settings)

    def _test(self) -> None:
        """Fall back to bounds where the tap lies: random weights tell, and what can be done must be known early."""
        if self.exact and not truthful(self):
            logger.warning("the sampler tap failed its self-test with this version of vLLM: entropies are bounds")
            self.exact = False

    def _check(self) -> None:
        """Raise RunFailed where the tap lies about the real weights, though it did not about random ones."""
        self._checked = True
        if not truthful(self):
            raise RunFailed("vLLM's sampler tap gives wrong entropies; choose bounds for sampling.vllm.entropy")

    def _check_lengths(self, ledger: Ledger) -> None:
        for index in ledger.waiting():
            length = len(ledger.given(index)) + int(ledger.limits[index] - ledger.lengths[index])
            if length > self.longest:
                raise ConfigError(
                    f"request {ledger.requests[index].id}: prompt and completion may take {length} tokens, and vLLM "
                    f"was started for {self.longest}; raise sampling.max_prompt_tokens",
                    "sampling.max_prompt_tokens",
                )


def _sampled(samplers: Samplers, ledger: Ledger, rows: np.ndarray, logits: Tensor) -> tuple[Tensor, ...]:
    """Draw a token for each row, [R, V] to [R] each; few rows at a time, because a draw keeps copies of them."""
    places = ledger.first[rows] + ledger.lengths[rows]
    chosen, numbers, position = (
        torch.from_numpy(values).to(logits.device) for values in (rows, uniforms(ledger.seeds[rows], places), places)
    )
    size = max(1, DRAWN_BYTES // (4 * logits.shape[1]))
    parts = [slice(start, start + size) for start in range(0, len(rows), size)]
    drawn = [
        samplers.of(chosen[part]).sample(
            logits[part], numbers[part], position[part], moments=ledger.moments, topk=ledger.topk
        )
        for part in parts
    ]
    return tuple(torch.cat(found) for found in zip(*drawn, strict=True))


def _compare(ended: Iterable[Any], ledger: Ledger) -> None:
    """Hold what vLLM says it generated against the ledger; they differ only if the tap took rows for others."""
    for output in ended:
        index = int(output.request_id)
        told = list(output.outputs[0].token_ids)
        known = ledger.ids[index, : ledger.lengths[index]].tolist()
        if output.finished and known[len(known) - len(told) :] != told:
            raise RunFailed(
                "vLLM's tokens are not those that were drawn: this version of it is not supported; choose hf for "
                "sampling.engine"
            )
