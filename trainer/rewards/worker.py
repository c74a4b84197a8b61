"""One grading child as its parent sees it: start, hand over a batch, read answers, kill."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections import deque
from typing import Any

from trainer.rewards import wire

START_SECONDS = 120.0  # importing sympy on a busy machine; afterwards the deadline per sample holds
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "ISENTROPE_HOME", "SYSTEMROOT")


def environment() -> dict[str, str]:
    """Return what a child may know: no tokens or passwords, one thread, the same hash order every time."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**kept, **threads, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}


class Gone(Exception):
    """The child has closed its pipes or speaks nonsense."""


class Worker:
    """A child and the samples it holds; `inflight` are sample numbers, the first being graded since `since`."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.rewards.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            bufsize=0,
        )
        self.setup = setup
        self.ready = False
        self.served = 0
        self.inflight: deque[int] = deque()
        self.since = time.monotonic()
        self._buffer = bytearray()
        os.set_blocking(self._input, False)
        self._send(setup)

    @property
    def _input(self) -> int:
        assert self.process.stdin is not None
        return self.process.stdin.fileno()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the child answers."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    @property
    def deadline(self) -> float:
        """When (monotonic seconds) the child is overdue; infinite while it has nothing to do."""
        if not self.ready:
            return self.since + START_SECONDS
        return self.since + self.setup["deadline_seconds"] if self.inflight else float("inf")

    def give(self, numbers: list[int], samples: list[Any]) -> None:
        """Hand over a batch; raise Gone where the child does not take it."""
        self.inflight.extend(numbers)
        self.since = time.monotonic()
        self._send(samples)
        self.since = time.monotonic()

    def answers(self) -> list[Any]:
        """Return the messages that have arrived; raise Gone at the end of the stream."""
        piece = os.read(self.fileno(), 1 << 16)
        if not piece:
            raise Gone
        self._buffer += piece
        self.since = time.monotonic()
        try:
            return wire.take(self._buffer)
        except ValueError as error:
            raise Gone from error

    def kill(self) -> None:
        """End the child at once and take its pipes down."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _send(self, message: Any) -> None:
        left = memoryview(wire.encode(message))
        while left:
            _, writable, _ = select.select([], [self._input], [], START_SECONDS)
            if not writable:
                raise Gone
            try:
                left = left[os.write(self._input, left) :]
            except BrokenPipeError as error:
                raise Gone from error
