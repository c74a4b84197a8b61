"""Heard: what comes from a server while it generates, on its way to whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from trainer.rollout.base import Chunk, Watcher
from trainer.rollout.ledger import OnChunk, OnProgress
from trainer.rollout.server.frame import Frame
from trainer.rollout.server.messages import CHUNK, unpack_chunks


class Heard:
    """Passes on what comes on the way; tokens that were heard before the server was lost are not told twice.

    A Watcher's wishes travel the other way, whenever they have changed.
    """

    def __init__(self, on_chunk: OnChunk | None, on_progress: OnProgress | None) -> None:
        self.on_chunk, self.on_progress = on_chunk, on_progress
        self.ends: dict[int, int] = {}  # of each watched request: behind the last token told
        self.wanted: list[int] | None = None
        self.want: Callable[[list[int]], None] = lambda ids: None  # tells the server

    def wishes(self) -> list[int] | None:
        """Return the ids that the hearer wants to hear of now; None where it has no mind of its own."""
        wanted = getattr(self.on_chunk, "wanted", None)
        self.wanted = None if wanted is None else sorted(wanted)
        return self.wanted

    def __call__(self, frame: Frame) -> None:
        if frame.type == "chunks" and self.on_chunk:
            if new := [chunk for chunk in map(self._new, unpack_chunks(frame)) if chunk.ids]:
                self.on_chunk(new)
        elif frame.type == "ended" and self.wanted is not None:
            cast(Watcher, self.on_chunk).ended(frame.columns["ids"].tolist())
        elif frame.type == "progress" and self.on_progress:
            self.on_progress(int(frame.header["done"]), int(frame.header["total"]))
        before = self.wanted
        if self.wishes() != before:
            self.want(self.wanted or [])

    def _new(self, chunk: Chunk) -> Chunk:
        end = chunk.first + len(chunk.ids)
        known = min(max(0, self.ends.get(chunk.id, 0) - chunk.first), len(chunk.ids))
        self.ends[chunk.id] = max(end, self.ends.get(chunk.id, 0))
        lists = {name: getattr(chunk, name)[known:] for name in CHUNK}
        return replace(chunk, first=chunk.first + known, **lists)
