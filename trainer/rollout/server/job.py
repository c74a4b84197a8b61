"""Job: what a client asked the engine for, and the generation of several clients' requests in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from trainer.rollout.base import Chunk, Generation, GenRequest
from trainer.rollout.server.frame import Frame, FrameError
from trainer.rollout.server.link import Gone
from trainer.rollout.server.messages import pack_chunks, pack_generations

if TYPE_CHECKING:
    from trainer.rollout.server.session import Session

PART_TOKENS = 1 << 20  # in one message of generations, which may carry a hundred bytes for each
PROGRESS_SECONDS = 0.1  # between two messages that say how far a run has come


class Aborted(Exception):
    """Nobody wants the result any more."""


@dataclass
class Job:
    """One command that takes the engine; `dropped` once its client left or called it off."""

    session: Session
    call: int
    frame: Frame
    requests: list[GenRequest] = field(default_factory=list)
    dropped: bool = False
    wanted: frozenset[int] = frozenset()  # ids of requests to tell of while they grow

    @property
    def type(self) -> str:
        return self.frame.type

    def want(self, ids: object) -> None:
        """Take over what the client wants to hear of; None means everything that may be watched."""
        if ids is None:
            self.wanted = frozenset(request.id for request in self.requests if request.watch)
        elif isinstance(ids, list) and all(isinstance(index, int) for index in ids):
            self.wanted = frozenset(ids)
        else:
            raise FrameError("what is wanted is no list of ids")

    def answer(self, type: str, generations: Sequence[Generation] | None = None, **fields: object) -> None:
        """Send something of this call to its client; a client that left is no fault."""
        if self.dropped:
            return
        header, columns = pack_generations(generations) if generations is not None else ({}, {})
        self.send({"type": type, "call": self.call, **fields, **header}, columns)

    def send(self, header: dict, columns: dict) -> None:
        try:
            self.session.link.send(header, columns)
        except Gone:
            self.dropped = True


class Batch:
    """Runs of several clients as one: an engine is faster with all of them than with one after the other."""

    def __init__(self, jobs: Sequence[Job], moved: Callable[[], None]) -> None:
        """`moved` is told whenever the engine got on."""
        self.jobs, self.moved = list(jobs), moved
        self.owners = [(job, request.id) for job in jobs for request in job.requests]
        asked = [request for job in jobs for request in job.requests]
        self.requests = [replace(request, id=place) for place, request in enumerate(asked)]
        self._said = 0.0

    @property
    def wanted(self) -> frozenset[int]:
        """Return what the engine should tell of now (see Watcher)."""
        return frozenset(place for place, (job, mine) in enumerate(self.owners) if mine in job.wanted)

    def ended(self, ids: Sequence[int]) -> None:
        """Tell each client which of its requests are complete."""
        self._go_on()
        for job in self.jobs:
            own = [self.owners[place][1] for place in ids if self.owners[place][0] is job]
            if own and not job.dropped:
                job.send({"type": "ended", "call": job.call}, {"ids": np.array(own, dtype="<i8")})

    def __call__(self, found: Sequence[Chunk]) -> None:
        """Pass new tokens on to whoever watches them."""
        self._go_on()
        for job in self.jobs:
            own = [replace(chunk, id=self.owners[chunk.id][1]) for chunk in found if self.owners[chunk.id][0] is job]
            if own and not job.dropped:
                header, columns = pack_chunks(own)
                job.send({"type": "chunks", "call": job.call, **header}, columns)

    def progress(self, done: int, total: int) -> None:
        """Tell each client its share of what is finished, not too often."""
        self._go_on()
        now = time.monotonic()
        if done < total and now - self._said < PROGRESS_SECONDS:
            return
        self._said = now
        for job in self.jobs:
            own = len(job.requests)
            job.answer("progress", done=done * own // max(1, total), total=own)

    def deliver(self, generations: Sequence[Generation]) -> None:
        """Send each client its own."""
        for job in self.jobs:
            own = [
                replace(one, id=mine)
                for one, (owner, mine) in zip(generations, self.owners, strict=True)
                if owner is job
            ]
            *parts, last = _parts(own)
            for part in parts:
                job.answer("part", part)
            job.answer("done", last)

    def _go_on(self) -> None:
        self.moved()
        if all(job.dropped for job in self.jobs):
            raise Aborted


def _parts(generations: Sequence[Generation]) -> list[list[Generation]]:
    """Return generations in order, cut into what fits a message; at least one part, which may be empty."""
    parts: list[list[Generation]] = [[]]
    tokens = 0
    for one in generations:
        tokens += len(one.ids)
        if tokens > PART_TOKENS and parts[-1]:
            parts.append([])
            tokens = len(one.ids)
        parts[-1].append(one)
    return parts
