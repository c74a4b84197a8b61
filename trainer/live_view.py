"""LiveView: the completions of one step that somebody watches, written as live frames while they grow.

Unasked, the first few completions of the first process's first groups are shown: several prompts side by side say more
than one whole group. Groups that viewers ask for come on top, whichever process samples them. Frames are for the eye
alone: the record never passes through here.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer import events
from trainer.events import Frame
from trainer.rollout import Chunk, Generation, GenRequest
from trainer.stream import Silent
from trainer.text import Detokenizer, PieceDecoder

SHOWN_PER_GROUP = 4  # where nobody asked for the group
MAX_PROMPT_CHARACTERS = 1 << 16
LABEL_CHARACTERS = 160  # of a prompt in the list of groups
GROUPS_PER_FRAME = 64
TOKENS_PER_FRAME = 1024  # one token's text may be long, and a frame is bounded
NEWS_SECONDS = 0.5  # between frames that say how far the groups are
PROGRESS_SECONDS = 0.1


@dataclass
class Group:
    """What is known of a group of the step."""

    prompt: str
    size: int = 0
    done: int = 0
    ids: list[int] = field(default_factory=list)  # those that may be watched, in order


class LiveView:
    """Writes the frames of one step; listens to the engine as a `Watcher`."""

    def __init__(self, stream: Silent, attempt: int, step: int, detokenizer: Detokenizer, *, limit: int) -> None:
        """`limit` bounds the completions shown unasked, and those shown of each group that is asked for."""
        self.stream, self.attempt, self.step, self.detokenizer = stream, attempt, step, detokenizer
        self.limit = limit if stream.live else 0
        self.requests: dict[int, GenRequest] = {}
        self.groups: dict[int, Group] = {}
        self.unasked: list[int] = []
        self.decoders: dict[int, PieceDecoder] = {}
        self.told: dict[int, int] = {}  # tokens of each shown completion that are written, its prefix included
        self.behind = 0  # requests of earlier waves
        self._ended: set[int] = set()
        self._picked: frozenset[int] = frozenset()
        self._wanted: frozenset[int] = frozenset()
        self._news: set[int] = set()  # groups whose progress is not written yet
        self._progressed = self._reported = 0.0

    # What the engine asks and tells --------------------------------------------------------------------------------

    @property
    def wanted(self) -> frozenset[int]:
        """Return the requests to show now; viewers may have chosen other groups since the last look."""
        if self.limit and self.stream.watched != self._picked:
            self._picked = self.stream.watched
            self._choose()
        return self._wanted

    def __call__(self, chunks: Sequence[Chunk]) -> None:
        """Write the tokens of chunks that somebody watches."""
        wanted = self.wanted  # an engine may not ask
        shown = [chunk for chunk in chunks if chunk.id in wanted]
        self.stream.frames(*(frame for chunk in shown for frame in self._tokens(chunk)))

    def ended(self, ids: Sequence[int]) -> None:
        """Count completions that are complete; how far the groups are is written now and then."""
        for index in ids:
            if index in self._ended or index not in self.requests:
                continue
            self._ended.add(index)
            group = self.requests[index].group
            self.groups[group].done += 1
            self._news.add(group)
        if time.monotonic() - self._reported >= NEWS_SECONDS:
            self._report()

    def progress(self, done: int, total: int) -> None:
        """Write a progress frame, at most ten a second."""
        now = time.monotonic()
        if done == total or now - self._progressed >= PROGRESS_SECONDS:
            self.stream.progress(self.step, "sample", self.behind + done, self.behind + total)
            self._progressed = now

    # Waves ---------------------------------------------------------------------------------------------------------

    def wave(self, requests: Sequence[GenRequest], prompts: Mapping[int, str]) -> None:
        """Take in a wave's requests; `prompts` are the texts by group."""
        if not self.limit:
            return
        for request in requests:
            group = self.groups.setdefault(request.group, Group(prompts[request.group]))
            group.size += 1
            self.requests[request.id] = request
            if request.watch:
                group.ids.append(request.id)
                self._consider(request)
        self._introduce(sorted({request.group for request in requests}))
        self._choose()

    def end(self, generations: Sequence[Generation]) -> None:
        """Write what is left of each watched completion of a wave, and why it ended."""
        self.behind += len(generations)
        if not self.limit:
            return
        for generation in generations:
            if generation.id in self._wanted:
                self._complete(generation)
        self.ended([generation.id for generation in generations])
        self._report()

    def _consider(self, request: GenRequest) -> None:
        """Show a completion unasked while there is room; what forks off a shown one has room of its own."""
        if self.stream.rank:
            return
        if request.parent is not None:
            if request.parent in self.unasked and len(self.unasked) < 2 * self.limit:
                self.unasked.append(request.id)
            return
        shown = Counter(self.requests[index].group for index in self.unasked)
        if not request.auxiliary and len(self.unasked) < self.limit and shown[request.group] < SHOWN_PER_GROUP:
            self.unasked.append(request.id)

    def _choose(self) -> None:
        """Decide what to show, and say which completions are new among it."""
        picked = [index for group in sorted(self._picked & self.groups.keys()) for index in self._of(group)]
        self._wanted = frozenset([*self.unasked, *picked])
        new = [index for index in dict.fromkeys([*self.unasked, *picked]) if index not in self.decoders]
        self.stream.frames(*(self._opened(self.requests[index]) for index in new))

    def _of(self, group: int) -> list[int]:
        return self.groups[group].ids[: self.limit]

    # Frames --------------------------------------------------------------------------------------------------------

    def _opened(self, request: GenRequest) -> Frame:
        decoder = self.decoders[request.id] = self.detokenizer.decoder()
        prefix = "".join(decoder.feed(index) for index in request.prefix_ids)
        self.told[request.id] = len(request.prefix_ids)
        content: dict[str, object] = {
            "group": request.group, "sample": request.sample, "picked": request.id not in self.unasked,
            "prompt": self.groups[request.group].prompt[:MAX_PROMPT_CHARACTERS],
        }  # fmt: skip
        if request.auxiliary:
            content["auxiliary"] = True
        if request.parent is not None:
            content |= {
                "parent": self._number(request.parent), "fork_at": request.fork_at,
                "prefix": prefix[-MAX_PROMPT_CHARACTERS:], "prefix_tokens": len(request.prefix_ids),
            }  # fmt: skip
        return self._json(events.KIND_PROMPT, self._number(request.id), content)

    def _tokens(self, chunk: Chunk) -> Iterator[Frame]:
        bounded = bool(chunk.low)
        for start in range(0, len(chunk.ids), TOKENS_PER_FRAME):
            part = slice(start, start + TOKENS_PER_FRAME)
            texts = [self.decoders[chunk.id].feed(index).encode()[:65535] for index in chunk.ids[part]]
            columns = [np.asarray(chunk.entropy), np.asarray(chunk.logprob).clip(-65504, 0)]
            columns += [np.asarray(chunk.low), np.asarray(chunk.high)] if bounded else []
            payload = b"".join([
                np.asarray(chunk.ids[part], "<u4").tobytes(),
                np.asarray([len(text) for text in texts], "<u2").tobytes(),
                *(column[part].astype("<f2").tobytes() for column in columns),
                *texts,
            ])  # fmt: skip
            first, count = chunk.first + start, len(texts)
            self.told[chunk.id] = first + count
            if len(payload) <= events.FRAME_MAX_PAYLOAD:
                kind = events.KIND_BOUNDED if bounded else events.KIND_TOKENS
                yield Frame(kind, self.attempt, self.step, self._number(chunk.id), first, count, payload)

    def _complete(self, generation: Generation) -> None:
        """Write the tokens that the engine did not tell on the way, and the end."""
        at = self.told[generation.id] - len(self.requests[generation.id].prefix_ids)
        rest = Chunk(
            generation.id, self.told[generation.id], generation.ids[at:], generation.logprob[at:],
            generation.entropy[at:], generation.low[at:], generation.high[at:],
        )  # fmt: skip
        content: dict[str, object] = {"finish_reason": generation.finish_reason}
        frames = [*self._tokens(rest)]
        if tail := self.decoders[generation.id].flush():
            content["tail"] = tail
        self.stream.frames(*frames, self._json(events.KIND_END, self._number(generation.id), content))

    def _introduce(self, groups: Sequence[int]) -> None:
        """Write the list of groups, or what a further wave adds to it."""
        known = [
            {"group": group, "prompt": self.groups[group].prompt[:LABEL_CHARACTERS], "size": self.groups[group].size}
            for group in groups
        ]
        parts = range(0, len(known), GROUPS_PER_FRAME)
        self.stream.frames(
            *(self._json(events.KIND_GROUPS, 0, {"groups": known[at : at + GROUPS_PER_FRAME]}) for at in parts)
        )

    def _report(self) -> None:
        """Write how far the groups are in which completions ended."""
        if self._news:
            news = [{"group": group, "done": self.groups[group].done} for group in sorted(self._news)]
            self.stream.frames(self._json(events.KIND_GROUPS, 0, {"groups": news}))
        self._news.clear()
        self._reported = time.monotonic()

    def _number(self, index: int) -> int:
        """Return what a frame calls a request: every process numbers its own from 0."""
        return self.stream.rank * events.RANK_STRIDE + index

    def _json(self, kind: int, rollout: int, content: dict[str, object]) -> Frame:
        return Frame(kind, self.attempt, self.step, rollout, payload=json.dumps(content, ensure_ascii=False).encode())
