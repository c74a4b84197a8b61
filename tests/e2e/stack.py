"""The real thing in a folder of its own: `manage.py up` as a child process, for end-to-end tests and benches."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"http://\S+/sign-in/\S+")
DEMO = re.compile(r"^ *(http://\S+/runs/\S+)", re.MULTILINE)
# What this process was told about services must not reach the stack, which brings its own.
OWN = ("DATABASE_URL", "DATABASE_URL_FILE", "REDIS_URL", "REDIS_URL_FILE", "ISENTROPE_URL", "ISENTROPE_DATABASE_POOL")
Found = TypeVar("Found")


def until(look: Callable[[], Found], *, seconds: float = 60.0, what: str = "") -> Found:
    """Look until something true is found and return it; raise AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {seconds:.0f} s in vain for {what or look}; last seen: {found!r}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Stack:
    """One running Isentrope: its address, its login link, its folder and its processes."""

    def __init__(self, home: Path, *arguments: str, **more: str) -> None:
        self.home, self.port = home, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = home / "up.out"
        inherited = {name: value for name, value in os.environ.items() if name not in OWN}
        env = {**inherited, "ISENTROPE_HOME": str(home), **more}
        command = [sys.executable, "manage.py", "up", "--port", str(self.port), *arguments]
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        """Wait for the greeting and read the links out of it."""
        said = until(self._greeting, seconds=120, what="the greeting of `manage.py up`")
        self.link = LINK.findall(said)[0]
        self.demo = next(iter(DEMO.findall(said)), "")

    def _greeting(self) -> str | None:
        text = self.output.read_text(errors="replace")
        if self.process.poll() is not None:
            raise AssertionError(f"`manage.py up` ended with code {self.process.returncode}:\n{text}")
        return text if "Ctrl-C stops everything" in text else None

    def child(self, name: str) -> int:
        """Return the pid of web, worker or scheduler."""
        return json.loads((self.home / "children.json").read_text())[name]["pid"]

    def run_folder(self, run_id: str) -> Path:
        return self.home / "runs" / run_id

    def events(self, run_id: str, kind: str = "") -> list[dict[str, Any]]:
        """Return the whole lines of a run's event file, of one type or all."""
        path = self.run_folder(run_id) / "events.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [event for event in found if not kind or event["type"] == kind]

    def tails(self, lines: int = 15) -> str:
        """Return the end of every log, for a test that failed."""
        logs = [self.output, *sorted((self.home / "logs").glob("*.log")), *sorted(self.home.glob("runs/*/trainer.log"))]
        ends = {log: log.read_text(errors="replace").splitlines()[-lines:] for log in logs}
        return "\n".join(f"--- {log.relative_to(self.home)}\n" + "\n".join(end) for log, end in ends.items())

    def stop(self) -> int:
        """Press Ctrl-C, as a person would; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(150)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise


@contextmanager
def stack(*arguments: str, **more: str) -> Iterator[Stack]:
    """Start everything in a fresh folder, with more environment; stop it and remove the folder afterwards."""
    # Short, because a unix socket's path has at most 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="isentrope-e2e-", dir="/tmp"))
    running = Stack(home, *arguments, **more)
    try:
        running.wait()
        yield running
    finally:
        running.stop()
        shutil.rmtree(home, ignore_errors=True)


def sign_in(page: Any, stack: Stack) -> None:
    """Open the one-time link and confirm."""
    page.goto(stack.link)
    page.click("main form button")
    page.wait_for_url(re.compile("/runs/"))
