"""Append-only streams of a run folder: events.jsonl (kept for ever) and live.bin (frames of the step being sampled).

Every line is flushed when written, so a killed process loses at most the line it was writing; the next attempt cuts
such a torn line off and counts on from the last whole one.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from trainer import events
from trainer.errors import ResourceError
from trainer.events import EVENT, Frame, RunFolder
from trainer.wishes import Wishes

LIVE_BYTES = 64 << 20  # of one step's frames: some four million watched tokens


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" into a ResourceError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"the disk that holds {path} is full; free some space (old checkpoints are the largest) and resume the run"
        ) from error


def cut_torn_line(path: Path) -> None:
    """Remove what follows the last newline of a file that may have been left in the middle of a write."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


def last_event(path: Path) -> dict[str, Any] | None:
    """Return the last readable event of a file, or None; unreadable lines behind it are skipped."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            rest = file.read(end - start) + rest
            lines = rest.split(b"\n")
            for line in reversed(lines if start == 0 else lines[1:]):
                found = _event(line)
                if found:
                    return found
            end = start
    return None


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("seq"), int) else None


class Silent:
    """A stream that drops everything: what the other processes of a run write to."""

    seq = 0
    rank = 0  # of the process that writes
    watched: frozenset[int] = frozenset()
    live = False  # whether anybody could ever see a frame

    def emit(self, kind: str, step: int, **fields: Any) -> None: ...

    def frames(self, *frames: Frame) -> None: ...

    def progress(self, step: int, phase: str, done: int, total: int) -> None: ...

    def begin_step(self) -> None: ...

    def close(self) -> None: ...


class LiveStream(Silent):
    """Writes live frames alone, to the file of a process beside the first; several threads may use it."""

    live = True

    def __init__(self, folder: RunFolder, rank: int) -> None:
        self._lock = threading.RLock()
        self.folder, self.rank = folder, rank
        self._live: BinaryIO = folder.live_of(rank).open("wb")
        self._wishes = Wishes(folder.control)

    @property
    def watched(self) -> frozenset[int]:  # type: ignore[override]
        """Return the groups that viewers ask to see now."""
        return self._wishes.groups()

    def begin_step(self) -> None:
        """Forget the frames of the step before."""
        with self._lock:
            self._live.seek(0)
            self._live.truncate()

    def frames(self, *frames: Frame) -> None:
        """Append live frames in one write; a step has room for so many bytes, and what is too much is not seen live."""
        data = b"".join(frame.encode() for frame in frames)
        with self._lock, disk_errors(self.folder.path):
            if not data or self._live.tell() + len(data) > LIVE_BYTES:
                return
            self._live.write(data)
            self._live.flush()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._live.close()


class Stream(LiveStream):
    """Writes the events and live frames of one attempt; several threads may use it."""

    def __init__(self, folder: RunFolder, attempt: int) -> None:
        cut_torn_line(folder.events)
        last = last_event(folder.events)
        super().__init__(folder, 0)
        self.attempt, self.seq = attempt, last["seq"] if last else 0
        self._events: BinaryIO = folder.events.open("ab")

    def emit(self, kind: str, step: int, **fields: Any) -> None:
        """Append one event of type `kind`; `values` lose what is not finite."""
        if "values" in fields:
            fields["values"] = {name: float(value) for name, value in fields["values"].items() if math.isfinite(value)}
        record = {"attempt": self.attempt, "step": step, "time": time.time(), "type": kind, **fields}
        with self._lock, disk_errors(self.folder.path):
            event = EVENT.validate_python({"seq": self.seq + 1, **record})
            self._events.write(event.model_dump_json().encode() + b"\n")
            self._events.flush()
            self.seq += 1

    def progress(self, step: int, phase: str, done: int, total: int) -> None:
        """Say how far a phase has come."""
        self.frames(events.progress(self.attempt, step, phase, done, total))

    def close(self) -> None:
        """Put the events on the disk for good."""
        with self._lock:
            self._events.flush()
            os.fsync(self._events.fileno())
            self._events.close()
            super().close()
