"""Live frames: from the growing live.bin into the run's capped Redis stream. Lossy by design, never in the way."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from trainer.events import FRAME, FRAME_MAGIC, FRAME_MAX_PAYLOAD, KIND_PROGRESS, Frame, frames
from webapp.runs import live

log = logging.getLogger(__name__)

READ = 4 << 20  # bytes of live.bin taken in one look
ENTRY = 16 << 10  # bytes of frames in one stream entry, if one frame is not larger
AWAY = 1.0  # seconds without attempts after the broker failed
LOOK = 0.025  # seconds between looks at the files of runs that sample
QUIET = 5.0  # seconds without a frame after which
IDLE = 0.1  # seconds between looks are enough


@dataclass(frozen=True)
class Progress:
    """How far a phase of a step has come."""

    attempt: int
    phase: str
    done: int
    total: int


class LiveFile:
    """Reads whole frames from live.bin, which starts over at each step."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.head = path, 0, b""

    def read(self) -> tuple[list[bytes], list[Frame], bool]:
        """Return the new frames, encoded and decoded, and whether the file started over."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return [], [], False
        with file:
            head, size = file.read(FRAME.size), os.fstat(file.fileno()).st_size
            # Each step begins with a header of its own, so a file that grew past our offset again is noticed too.
            anew = size < self.offset or (len(head) == FRAME.size and head != self.head)
            if anew:
                self.offset, self.head = 0, head if len(head) == FRAME.size else b""
            file.seek(self.offset)
            data = file.read(min(READ, max(0, size - self.offset)))
        return *self._whole(data), anew

    def _whole(self, data: bytes) -> tuple[list[bytes], list[Frame]]:
        encoded, decoded, start = [], [], 0
        for frame, end in frames(data):
            encoded.append(data[start:end])
            decoded.append(frame)
            start = end
        self.offset += start
        if foreign(data[start:]):
            self.offset += len(data) - start  # nothing sensible follows before the next step
        return encoded, decoded


def foreign(rest: bytes) -> bool:
    """Tell bytes that can never become a frame from one that is still being written."""
    if len(rest) < FRAME.size:
        return False
    magic, *_, size = FRAME.unpack_from(rest)
    return magic != FRAME_MAGIC or size > FRAME_MAX_PAYLOAD or len(rest) >= FRAME.size + size


class Broker:
    """The Redis connection of a worker's live streams; while it is away frames are dropped."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(
            url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0), health_check_interval=30
        )
        self.away_until, self.away = 0.0, False

    def add(self, key: str, entries: list[bytes], *, oldest: str = "") -> list[str]:
        """Append entries, forget those before `oldest`; return the new ids, none if the broker is away."""
        if time.monotonic() < self.away_until:
            return []
        try:
            with self.client.pipeline(transaction=False) as pipe:
                for entry in entries:
                    pipe.xadd(key, {b"f": entry}, maxlen=live.STREAM_LENGTH, approximate=True)
                if oldest:
                    pipe.xtrim(key, minid=oldest, approximate=False)
                pipe.expire(key, live.STREAM_SECONDS)
                ids = pipe.execute()[: len(entries)]
        except redis.RedisError as error:
            if not self.away:
                log.warning("Live frames are dropped until the broker is back: %s", error)
            self.away, self.away_until = True, time.monotonic() + AWAY
            return []
        if self.away:
            log.info("The broker is back")
            self.away = False
        return [entry_id.decode() for entry_id in ids]


class Forwarder:
    """Moves one run's frames; the stream keeps the last two steps, so late viewers start where a step does.

    Two threads use it: frames are moved by `Hurry` and, where that does not run, with everything else of the run.
    """

    def __init__(self, run_id: str, path: Path, broker: Broker, others: Sequence[Path] = ()) -> None:
        """`path` is written by the trainer's first process and says when a step begins, `others` by the rest."""
        self.key, self.file, self.broker = live.stream(run_id), LiveFile(path), broker
        self.others = [LiveFile(other) for other in others]
        self.current = ""  # first stream id of the newest step
        self.begins = True
        self.progress: Progress | None = None
        self._lock = threading.Lock()

    def forward(self) -> Progress | None:
        """Publish what is new; return the newest progress since the last call."""
        self.move()
        progress, self.progress = self.progress, None
        return progress

    def move(self) -> bool:
        """Publish what is new, if nobody else is at it; return whether there was anything."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return self._move()
        finally:
            self._lock.release()

    def _move(self) -> bool:
        encoded, decoded, anew = self.file.read()
        self.begins |= anew
        for other in self.others:
            encoded += other.read()[0]
        if not encoded:
            return False
        ids = self.broker.add(self.key, list(joined(encoded)), oldest=self.current if self.begins else "")
        if self.begins and ids:
            self.current, self.begins = ids[0], False
        self.progress = newest_progress(decoded) or self.progress
        return True


class Hurry:
    """A thread of its own for live frames, so that they wait neither for rows nor for the supervisor's beat."""

    def __init__(self, forwarders: Callable[[], list[Forwarder]]) -> None:
        """`forwarders` gives those that may be moved now."""
        self.forwarders = forwarders
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-frames", daemon=True)
        self._moved_at = 0.0

    def __enter__(self) -> Hurry:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._leaving.wait(LOOK if time.monotonic() - self._moved_at < QUIET else IDLE):
            for forwarder in self.forwarders():
                self._move(forwarder)

    def _move(self, forwarder: Forwarder) -> None:
        try:
            if forwarder.move():
                self._moved_at = time.monotonic()
        # Frames may be lost, the thread may not.
        except Exception:
            log.exception("Live frames of %s could not be moved", forwarder.key)
            self._leaving.wait(AWAY)


def joined(encoded: list[bytes]) -> Iterator[bytes]:
    """Join frames into entries of bounded size."""
    held: list[bytes] = []
    size = 0
    for frame in encoded:
        if held and size + len(frame) > ENTRY:
            yield b"".join(held)
            held, size = [], 0
        held.append(frame)
        size += len(frame)
    if held:
        yield b"".join(held)


def newest_progress(decoded: list[Frame]) -> Progress | None:
    """Return what the last readable progress frame says."""
    for frame in reversed(decoded):
        if frame.kind != KIND_PROGRESS:
            continue
        try:
            said = json.loads(frame.payload)
            phase, done, total = str(said["phase"]).replace("\x00", ""), int(said["done"]), int(said["total"])
        except (ValueError, KeyError, TypeError):
            continue
        if 0 <= done < 2**31 and 0 <= total < 2**31:
            return Progress(frame.attempt, phase[:40], done, total)
    return None
