"""The `hf` engine: continuous batching over the training model itself. Any device; exact entropy; nothing to sync.

A fixed number of rows decodes; a finished row leaves at once and the next request takes its place, so a few long
completions never leave the batch idle. Equal prompts are run once. Rows are as many as the key-value budget holds and
at most DECODE_ROWS, above which a step's matrix products are bound by arithmetic and more rows only cost memory.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.budgets import CPU_CACHE_BYTES, DECODE_ROWS, DRAWN_BYTES, GPU_CACHE_SHARE
from trainer.errors import ResourceError
from trainer.policy import Policy, Trajectory, out_of_memory
from trainer.rollout.base import Caps, Generation, GenRequest
from trainer.rollout.fallbacks import Waves, Whole
from trainer.rollout.ledger import Ledger, OnChunk, OnProgress
from trainer.rollout.randomness import uniforms
from trainer.rollout.sampling import Samplers
from trainer.rollout.slots import Slots, reach

logger = logging.getLogger(__name__)

TOPK_MAX = 1024  # of a token's likeliest, so that a run's numbers stay in memory


class Rows(Protocol):
    """Rows of a decode batch: how a model's state is kept between steps."""

    def __init__(self, policy: Policy, prompts: Sequence[tuple[int, ...]], *, rows: int, columns: int) -> None: ...

    @property
    def room(self) -> int: ...

    def admit(self, count: int) -> Tensor: ...

    def step(self, tokens: Tensor) -> Tensor: ...

    def keep(self, order: np.ndarray) -> None: ...


class HfEngine:
    """Generates with the policy's own model."""

    caps = Caps(
        exact_entropy=True, per_request_sampler=True, prefix=True, in_process=True, moments=True, topk_max=TOPK_MAX
    )

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.version = self.restarts = 0
        self.rows = DECODE_ROWS  # halved when memory runs out
        self._kinds: list[type[Rows]] = []

    def sync_weights(self, version: int) -> bool:
        """Nothing to copy: the weights are the trainer's."""
        self.version = version
        return False

    def rest(self) -> None:
        """Nothing to give back: keys and values live as long as a run."""

    def close(self) -> None:
        """Nothing to give back: the model is the trainer's."""

    def probe(self) -> float:
        """Return 0: there is one model."""
        return 0.0

    def score(self, requests: Sequence[GenRequest]) -> list[Generation]:
        """Return statistics of the prefix tokens, at each request's temperature."""
        found: dict[int, Generation] = {}
        for temperature in {request.sampler.temperature for request in requests}:
            chosen = [i for i, request in enumerate(requests) if request.sampler.temperature == temperature]
            tokens = [Trajectory(requests[i].prompt_ids, requests[i].prefix_ids) for i in chosen]
            stats = self.policy.score(tokens, temperature or 1.0)
            counts = [len(row.completion) for row in tokens]
            for i, logprob, entropy in zip(
                chosen, stats["logprob"].split(counts), stats["entropy"].split(counts), strict=True
            ):
                request = requests[i]
                found[i] = Generation(request.id, list(request.prefix_ids), logprob.tolist(), entropy.tolist(), "stop")
        return [found[i] for i in range(len(requests))]

    @torch.no_grad()
    def run(
        self, requests: Sequence[GenRequest], on_chunk: OnChunk | None = None, on_progress: OnProgress | None = None
    ) -> list[Generation]:
        """Return one Generation for each request, in order; raises ResourceError where a single one does not fit.

        After running out of memory the unfinished requests go on from the tokens they have, in half as many rows.
        """
        ledger = Ledger(requests, self.policy.stop_ids, on_chunk, on_progress)
        samplers = Samplers([request.sampler for request in requests], self.policy.device)
        while waiting := ledger.waiting():
            columns = max(len(ledger.given(i)) + int(ledger.limits[i] - ledger.lengths[i]) for i in waiting)
            rows = min(self._fitting(columns), len(waiting))
            try:
                _decode(self._kind(columns), self.policy, ledger, samplers, waiting, rows=rows, columns=columns)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._shrink(error, rows)
            else:
                break
            gc.collect()
            if self.policy.device.type == "cuda":
                torch.cuda.empty_cache()
        return ledger.generations(self.version)

    def _fitting(self, columns: int) -> int:
        """Return how many rows of so many tokens the key-value budget holds."""
        row = columns * _cache_bytes_per_token(self.policy.lm)
        return max(1, min(self.rows, self._cache_bytes() // row))

    def _cache_bytes(self) -> int:
        if self.policy.device.type != "cuda":
            return CPU_CACHE_BYTES
        return int(torch.cuda.mem_get_info(self.policy.device)[0] * GPU_CACHE_SHARE)

    def _kind(self, columns: int) -> type[Rows]:
        """Return how to keep the model's state for rows of so many tokens: the fastest way that is right."""
        if not self._kinds:
            self._kinds = [kind for kind in (Slots, Waves) if _agrees(kind, self.policy)] + [Whole]
            logger.info("sampling with %s", ", ".join(kind.__name__.lower() for kind in self._kinds))
        fits = columns <= reach(self.policy.lm.config)
        return next(kind for kind in self._kinds if kind is not Slots or fits)

    def _shrink(self, error: Exception, rows: int) -> None:
        """Halve the rows after running out of memory; re-raise what is something else."""
        if not out_of_memory(error):
            raise error
        if rows == 1:
            raise ResourceError(
                "one completion does not fit into memory while sampling; lower sampling.max_completion_tokens or use a "
                "smaller model"
            ) from error
        self.rows = rows // 2


def _decode(
    kind: type[Rows],
    policy: Policy,
    ledger: Ledger,
    samplers: Samplers,
    waiting: list[int],
    *,
    rows: int,
    columns: int,
) -> None:
    """Complete the waiting requests, at most `rows` at a time, each of at most `columns` tokens."""
    store = kind(policy, [ledger.given(index) for index in waiting], rows=rows, columns=columns)
    active, states = np.zeros(0, dtype=np.int64), torch.zeros(0, device=policy.device)  # request, [H] of each row
    while True:
        if new := waiting[: store.room]:
            del waiting[: len(new)]
            states = torch.cat([states, store.admit(len(new))]) if len(active) else store.admit(len(new))
            active = np.concatenate([active, np.array(new)])
        if not len(active):
            return
        places = ledger.first[active] + ledger.lengths[active]
        chosen, numbers, position = (
            torch.from_numpy(values).to(policy.device)
            for values in (active, uniforms(ledger.seeds[active], places), places)
        )
        token, *known = _draw(policy, states, samplers.of(chosen), numbers, position, ledger)
        going = ledger.record(active, token.cpu().numpy(), torch.stack(known, 1).cpu().numpy())
        ledger.report()
        order = _compacted(going)
        if len(order) < len(active):
            active, token = active[order], token[torch.from_numpy(order).to(policy.device)]
            store.keep(order)
        if len(active):
            states = store.step(token)


def _draw(
    policy: Policy, states: Tensor, samplers: Samplers, numbers: Tensor, position: Tensor, ledger: Ledger
) -> tuple[Tensor, ...]:
    """Return token and statistics of each row, [R, H] to [R] each; the logits of few rows exist at once."""
    size, moments, topk = max(1, DRAWN_BYTES // (4 * policy.vocabulary)), ledger.moments, ledger.topk
    if len(states) <= size:
        return samplers.sample(policy.logits(states), numbers, position, moments=moments, topk=topk)
    parts = [slice(start, start + size) for start in range(0, len(states), size)]
    drawn = [
        samplers.of(part).sample(policy.logits(states[part]), numbers[part], position[part], moments=moments, topk=topk)
        for part in parts
    ]
    return tuple(torch.cat(found) for found in zip(*drawn, strict=True))


def _compacted(going: np.ndarray) -> np.ndarray:
    """Return which row each of the remaining rows was: the last ones fill the places of those that left."""
    count = int(going.sum())
    order = np.arange(count)
    order[~going[:count]] = count + np.flatnonzero(going[count:])
    return order


@torch.no_grad()
def _agrees(kind: type[Rows], policy: Policy) -> bool:
    """Return whether a kind of rows gives this model the states of a plain pass, found by trying."""
    if kind is Slots and not reach(policy.lm.config):
        return False
    try:
        found = _trial(kind, policy)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        return False  # a model without this kind of cache
    plain = _trial(Whole, policy)
    tolerance = 1e-4 if policy.config.dtype == "float32" else 0.05
    scale = 1 + float(plain.nan_to_num().abs().max())  # broken weights are for the loop to report
    return torch.allclose(found, plain, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _trial(kind: type[Rows], policy: Policy) -> Tensor:
    """Return the states of a few fixed tokens in two rows, of which the first leaves early, [5, H]."""
    one, two, three, four, five = [index % policy.vocabulary for index in range(1, 6)]
    rows = kind(policy, [(one, two, three), (four,)], rows=2, columns=6)
    states = [rows.admit(2), rows.step(torch.tensor([five, two], device=policy.device))]
    rows.keep(np.array([1]))
    return torch.cat([*states, rows.step(torch.tensor([three], device=policy.device))]).float()


def _cache_bytes_per_token(lm: Any) -> int:
    """Return the key-value cache of one token of one row."""
    config = lm.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * next(lm.parameters()).element_size()
