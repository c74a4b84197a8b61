"""LiveView: the watched completions of one step, written as live frames while they grow."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

import numpy as np

from trainer import events
from trainer.events import Frame
from trainer.rollout import Chunk, Generation, GenRequest
from trainer.stream import Silent
from trainer.text import Detokenizer, PieceDecoder

MAX_PROMPT_CHARACTERS = 1 << 16


class LiveView:
    """Writes the frames of one step's watched completions while they grow."""

    def __init__(self, stream: Silent, attempt: int, step: int, detokenizer: Detokenizer) -> None:
        self.stream, self.attempt, self.step, self.detokenizer = stream, attempt, step, detokenizer
        self.decoders: dict[int, PieceDecoder] = {}
        self.behind = 0  # requests of earlier waves
        self._progressed = 0.0

    def wave(self, requests: Sequence[GenRequest], prompts: Mapping[int, str]) -> None:
        """Open the watched requests of a wave; `prompts` are the texts by group."""
        for request in requests:
            if request.watch:
                self._open(request, prompts[request.group])

    def _open(self, request: GenRequest, prompt: str) -> None:
        decoder = self.decoders[request.id] = self.detokenizer.decoder()
        prefix = "".join(decoder.feed(index) for index in request.prefix_ids)
        content: dict[str, object] = {
            "group": request.group, "sample": request.sample, "prompt": prompt[:MAX_PROMPT_CHARACTERS],
        }  # fmt: skip
        if request.parent is not None:
            content |= {"parent": request.parent, "fork_at": request.fork_at, "prefix": prefix[:MAX_PROMPT_CHARACTERS]}
        self._frame(events.KIND_PROMPT, request.id, content)

    def chunks(self, chunks: Sequence[Chunk]) -> None:
        """Write a TOKENS frame for each chunk."""
        for chunk in chunks:
            texts = [self.decoders[chunk.id].feed(index).encode()[:65535] for index in chunk.ids]
            payload = b"".join([
                np.asarray(chunk.ids, "<u4").tobytes(),
                np.asarray([len(text) for text in texts], "<u2").tobytes(),
                np.asarray(chunk.entropy, "<f2").tobytes(),
                np.asarray(chunk.logprob, "<f4").clip(-65504, 0).astype("<f2").tobytes(),
                *texts,
            ])  # fmt: skip
            if len(payload) <= events.FRAME_MAX_PAYLOAD:
                count = len(chunk.ids)
                self.stream.frame(
                    Frame(events.KIND_TOKENS, self.attempt, self.step, chunk.id, chunk.first, count, payload)
                )

    def progress(self, done: int, total: int) -> None:
        """Write a progress frame, at most ten a second."""
        now = time.monotonic()
        if done == total or now - self._progressed >= 0.1:
            self.stream.progress(self.step, "sample", self.behind + done, self.behind + total)
            self._progressed = now

    def end(self, generations: Sequence[Generation]) -> None:
        """Write why each watched completion of a wave ended."""
        self.behind += len(generations)
        for generation in generations:
            if generation.id in self.decoders:
                self._frame(events.KIND_END, generation.id, {"finish_reason": generation.finish_reason})

    def _frame(self, kind: int, rollout: int, content: dict[str, object]) -> None:
        self.stream.frame(Frame(kind, self.attempt, self.step, rollout, payload=json.dumps(content).encode()))
