"""The ledger of one run of an engine: what each request has become, which wait, and what its watchers have heard."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import numpy as np

from trainer.errors import ConfigError
from trainer.rollout.base import Chunk, Generation, GenRequest
from trainer.statistics import MOMENTS

CHUNK_SECONDS = 0.05  # watched tokens are reported this often at most

OnChunk = Callable[[Sequence[Chunk]], None]
OnProgress = Callable[[int, int], None]


class Ledger:
    """Tokens and statistics of all requests; outlives a decode loop that ran out of memory."""

    def __init__(
        self,
        requests: Sequence[GenRequest],
        stop_ids: Collection[int],
        on_chunk: OnChunk | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Raises ConfigError for a request without any token to continue."""
        for request in requests:
            if not request.prompt_ids and not request.prefix_ids:
                raise ConfigError(
                    f"request {request.id}: its prompt has no tokens, and a model needs one to continue from; write a "
                    "prompt or use a tokenizer that begins every text with a token"
                )
        self.requests, self.on_chunk, self.on_progress = requests, on_chunk, on_progress
        self.limits = np.array([max(0, request.max_new) for request in requests], dtype=np.int64)
        size = len(requests), int(self.limits.max(initial=0))
        self.ids = np.zeros(size, dtype=np.int32)
        self.moments = any(request.tap.moments for request in requests)
        self.topk = max((request.tap.topk for request in requests), default=0)
        bent = not all(request.sampler.plain for request in requests)
        tops = [f"{kind}{rank}" for kind in ("top_logprob", "top_id") for rank in range(self.topk)]
        moments = MOMENTS if self.moments else ()
        self.names = ("logprob", "entropy", *moments, *tops, *(("behaviour",) if bent else ()))
        self.known = np.zeros((*size, len(self.names)), dtype=np.float32)  # statistics of each token
        self.lengths = np.zeros(len(requests), dtype=np.int64)
        self.stopped = np.zeros(len(requests), dtype=bool)
        self.seeds = np.array([request.seed for request in requests], dtype=np.uint64)
        self.first = np.array([len(request.prefix_ids) for request in requests], dtype=np.int64)
        self.stop = np.array(sorted(stop_ids), dtype=np.int64)
        self.places = {request.id: index for index, request in enumerate(requests) if request.watch}
        self.sent = np.zeros(len(requests), dtype=np.int64)  # tokens told to watchers
        self.told = np.zeros(len(requests), dtype=bool)  # whose end was told
        self.reported = 0.0

    @property
    def finished(self) -> np.ndarray:
        """Return which requests are complete, bool [n]."""
        return self.stopped | (self.lengths >= self.limits)

    def given(self, index: int) -> tuple[int, ...]:
        """Return all tokens of a request so far: prompt, prefix and what was drawn."""
        request = self.requests[index]
        return (*request.prompt_ids, *request.prefix_ids, *self.ids[index, : self.lengths[index]].tolist())

    def waiting(self) -> list[int]:
        """Return the unfinished requests, first come first, those of equal tokens together."""
        place: dict[tuple[int, ...], int] = {}
        unfinished = np.flatnonzero(~self.finished).tolist()
        order = {index: place.setdefault(self.given(index), index) for index in unfinished}
        return sorted(unfinished, key=lambda index: (order[index], index))

    def record(self, rows: np.ndarray, token: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Add one token and its statistics, [R] and [R, K], to each of these requests; return which go on, bool [R]."""
        at = self.lengths[rows]
        self.ids[rows, at], self.known[rows, at] = token, known
        self.lengths[rows] = at + 1
        ended = np.isin(token, self.stop)
        self.stopped[rows] = ended
        return ~ended & (at + 1 < self.limits[rows])

    def report(self) -> None:
        """Tell how many requests are finished and, not too often, the watched ones' new tokens."""
        ended = self.finished
        finished = int(ended.sum())
        if self.on_progress is not None:
            self.on_progress(finished, len(self.requests))
        if self.on_chunk is None:
            return
        if finished < len(self.requests) and time.monotonic() - self.reported < CHUNK_SECONDS:
            return
        chunks = [self._chunk(index) for index in self._wanted() if self.sent[index] < self.lengths[index]]
        if chunks:
            self.on_chunk(chunks)
        if (tell := getattr(self.on_chunk, "ended", None)) and (new := np.flatnonzero(ended & ~self.told).tolist()):
            self.told = ended
            tell([self.requests[index].id for index in new])
        self.reported = time.monotonic()

    def _wanted(self) -> list[int]:
        """Return whose tokens to tell: what a Watcher wants now, to any other hearer everything watched."""
        wanted = getattr(self.on_chunk, "wanted", None)
        if wanted is None:
            return list(self.places.values())
        return sorted(self.places[index] for index in wanted if index in self.places)

    def _chunk(self, index: int) -> Chunk:
        request, start, end = self.requests[index], int(self.sent[index]), int(self.lengths[index])
        self.sent[index] = end
        logprob, entropy = self.known[index, start:end, :2].T.tolist()
        return Chunk(request.id, len(request.prefix_ids) + start, self.ids[index, start:end].tolist(), logprob, entropy)

    def generations(self, version: int = 0) -> list[Generation]:
        """Return what the requests became, in order, under weights of this version."""
        return [self._generation(index, version) for index in range(len(self.requests))]

    def _generation(self, index: int, version: int) -> Generation:
        length = int(self.lengths[index])
        known = dict(zip(self.names, self.known[index, :length].T.tolist(), strict=True))
        behaviour, request = known.pop("behaviour", []), self.requests[index]
        top_ids, top_logprob = (
            list(zip(*(known.pop(f"{kind}{rank}") for rank in range(self.topk)), strict=True))
            for kind in ("top_id", "top_logprob")
        )
        kept = [min(request.tap.topk, sum(token >= 0 for token in row)) for row in top_ids]
        return Generation(
            request.id,
            self.ids[index, :length].tolist(),
            known.pop("logprob"),
            known.pop("entropy"),
            "stop" if self.stopped[index] else "length",
            moments=known,
            behaviour=[] if request.sampler.plain else behaviour,
            top_ids=[[int(token) for token in row[:n]] for row, n in zip(top_ids, kept, strict=True) if n],
            top_logprob=[list(row[:n]) for row, n in zip(top_logprob, kept, strict=True) if n],
            version=version,
        )
