"""A child process of the launcher: its log file, its restarts, its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

LOG_BYTES = 10 * 2**20  # a log larger than this at the start is put aside
STEADY_SECONDS = 60.0  # a child that lived this long starts its backoff anew
MAX_DELAY = 30.0  # seconds between restarts
TROUBLE = re.compile(r"\b(ERROR|CRITICAL)\b|^Traceback|^\w+(\.\w+)*(Error|Exception):")


class Child:
    """One supervised program; output goes to a file, never to a pipe that could fill up."""

    def __init__(self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path) -> None:
        self.name, self.command, self.env, self.log, self.cwd = name, list(command), dict(env), log, cwd
        self.process: subprocess.Popen | None = None
        self.failures = 0
        self._started = 0.0
        self._restart_at = 0.0
        self._read = 0  # bytes of the log already looked at

    def start(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        self._read = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            # A session of its own: Ctrl-C is for the launcher, which ends its children in order.
            self.process = subprocess.Popen(
                self.command,
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started = time.monotonic()

    @property
    def identity(self) -> dict[str, float]:
        """Pid and start time: a pid alone can be reused."""
        assert self.process is not None
        return {"pid": self.process.pid, "started": psutil.Process(self.process.pid).create_time()}

    def tend(self) -> str:
        """Restart the program if it ended; return a sentence about it, or an empty string."""
        if self.process is not None and self.process.poll() is None:
            return ""
        now = time.monotonic()
        if self.process is not None:
            code = self.process.returncode
            self.process = None
            self.failures = 1 if now - self._started > STEADY_SECONDS else self.failures + 1
            delay = min(2.0 ** (self.failures - 1), MAX_DELAY)
            self._restart_at = now + delay
            return f"ended with code {code}; starting it again in {delay:.0f} s (log: {self.log})"
        if now >= self._restart_at:
            self.start()
            return "started again"
        return ""

    def trouble(self) -> list[str]:
        """Return the lines written since the last look that tell of a problem."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(self._read)
            data = file.read(1 << 20)
        # A line still being written waits for the next look.
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [line for line in whole.decode(errors="replace").splitlines() if TROUBLE.search(line)]

    def stop(self, patience: float) -> bool:
        """SIGTERM, wait `patience` seconds, then SIGKILL; return whether it ended by itself."""
        if self.process is None or self.process.poll() is not None:
            return True
        self.process.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def end_leftover(pid: int, started: float, patience: float = 10.0) -> bool:
    """End a child that a killed launcher left behind; return whether there was one."""
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - started) > 1:
            return False
        process.terminate()
        process.wait(patience)
    except psutil.NoSuchProcess:
        return False
    except psutil.TimeoutExpired:
        process.kill()
    return True
