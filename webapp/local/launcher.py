"""`manage.py up`: services, preparation, then web, worker and scheduler as children, ended in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from webapp.local.child import Child, end_leftover
from webapp.local.home import Home
from webapp.local.postgres import EmbeddedPostgres
from webapp.local.valkey import EmbeddedValkey

LOOK_EVERY = 0.5  # seconds
READY_TIMEOUT = 90.0  # seconds; two cores starting three Python programs at once
# A worker first lets its trainers write a checkpoint.
WORKER_PATIENCE = 120.0
PATIENCE = 10.0


class StartFailed(Exception):
    """Something did not start; the message is for the terminal."""


def end_leftovers(home: Home, say: Callable[[str], None]) -> None:
    """End web, worker and scheduler of a launcher that was killed; trainers live on and are adopted again."""
    for name, identity in home.recall("children.json").items():
        if end_leftover(**identity):
            say(f"Ended a {name} process left by an earlier start.")


class Launcher:
    """Everything one machine needs, started and ended in the right order."""

    def __init__(self, home: Home, *, root: Path, site_url: str, port: int, say: Callable[[str], None]) -> None:
        self.home, self.root, self.site_url, self.port, self.say = home, root, site_url, port, say
        self.services: dict[str, EmbeddedPostgres | EmbeddedValkey] = {}
        self.children: list[Child] = []
        self.env = {
            **os.environ,
            "ISENTROPE_HOME": str(home.path),
            "ISENTROPE_URL": site_url,
            "PYTHONUNBUFFERED": "1",
            # The launcher leaves: so do the trainers, after a checkpoint. A restart of the worker alone keeps them.
            "ISENTROPE_STOP_RUNS_ON_EXIT": "1",
        }
        self._leave = threading.Event()

    # --- Start ------------------------------------------------------------------------------------------------------

    def start_services(self) -> None:
        """Start the embedded services that no environment variable replaces, and record their URLs for the settings."""
        if not os.environ.get("DATABASE_URL") and not os.environ.get("DATABASE_URL_FILE"):
            self.services["DATABASE_URL"] = EmbeddedPostgres(self.home.path / "postgres")
        if not os.environ.get("REDIS_URL") and not os.environ.get("REDIS_URL_FILE"):
            self.services["REDIS_URL"] = EmbeddedValkey(self.home.path / "valkey")
        self.home.record("services.json", {name: service.start() for name, service in self.services.items()})

    def prepare(self, *, demo: bool) -> dict[str, Any]:
        """Migrate, ensure an admin, make the login link (and the demo run) in a process that reads the new settings."""
        command = [sys.executable, "manage.py", "prepare", "--json", *(["--demo"] if demo else [])]
        with (self.home.logs / "prepare.log").open("ab") as log:
            done = subprocess.run(
                command, cwd=self.root, env=self.env, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        if done.returncode != 0:
            raise StartFailed(f"Preparing the database failed.\n{self._tail('prepare')}")
        return json.loads(done.stdout.splitlines()[-1])

    def start_web(self) -> None:
        self._start("web", [sys.executable, "manage.py", "serve", "--port", str(self.port)])

    def start_workers(self) -> None:
        """Start worker, analysis and scheduler; they need the tables that `prepare` makes."""
        celery = [sys.executable, "-m", "celery", "-A", "workers.app"]
        self._start(
            "worker",
            [*celery, "worker", "-P", "threads", "-c", "4", "--without-gossip", "--without-mingle", "-l", "INFO"],
        )
        analysis = [sys.executable, "-m", "celery", "-A", "workers.analysis", "worker", "-Q", "analysis"]
        self._start(
            "analysis",
            [*analysis, "-n", "analysis@%h", "-P", "prefork", "-c", "2", "--max-memory-per-child", "1500000",
             "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO"],
        )  # fmt: skip
        self._start(
            "scheduler", [*celery, "beat", "-s", str(self.home.path / "beat"), "--pidfile", "", "-l", "WARNING"]
        )

    def wait_until_ready(self) -> None:
        """Wait until the site answers with its services behind it."""
        deadline = time.monotonic() + READY_TIMEOUT
        web = self.children[0]
        while not self._leave.is_set() and not self._answers():
            if web.process is None or web.process.poll() is not None:
                raise StartFailed(f"The web server ended at once.\n{self._tail('web')}")
            if time.monotonic() > deadline:
                raise StartFailed(f"The web server did not answer within {READY_TIMEOUT:.0f} s.\n{self._tail('web')}")
            self._leave.wait(0.1)

    # --- Watch ------------------------------------------------------------------------------------------------------

    def heed_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    @property
    def leaving(self) -> bool:
        return self._leave.is_set()

    def watch(self) -> None:
        """Restart what ends and repeat what goes wrong, until a signal says to leave."""
        while not self._leave.wait(LOOK_EVERY):
            for child in self.children:
                if news := child.tend():
                    self.say(f"[{child.name}] {news}")
                    self._record_children()
                for line in child.trouble():
                    self.say(f"[{child.name}] {line}")
            for name, service in self.services.items():
                if not service.running():
                    self.say(f"[{name}] ended; starting it again")
                    service.start()

    # --- End --------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Worker first, so that trainers write their checkpoints while the database still answers; services last."""
        for child in sorted(self.children, key=lambda child: child.name != "worker"):
            patience = WORKER_PATIENCE if child.name == "worker" else PATIENCE
            if not child.stop(patience):
                self.say(f"[{child.name}] did not end within {patience:.0f} s and was killed.")
        self.home.record("children.json", {})
        for service in reversed(self.services.values()):
            service.stop()
        self.home.release()

    def _on_signal(self, number: int, frame: object) -> None:
        if not self._leave.is_set():
            self.say("\nStopping: runs write a checkpoint first. Press Ctrl-C again to stop at once.")
            self._leave.set()
            return
        for child in self.children:
            child.kill()

    def _start(self, name: str, command: list[str]) -> None:
        child = Child(name, command, env=self.env, log=self.home.logs / f"{name}.log", cwd=self.root)
        child.start()
        self.children.append(child)
        self._record_children()

    def _record_children(self) -> None:
        alive = [child for child in self.children if child.process is not None and child.process.poll() is None]
        self.home.record("children.json", {child.name: child.identity for child in alive})

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _tail(self, name: str, lines: int = 20) -> str:
        path = self.home.logs / f"{name}.log"
        last = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
        return "\n".join([f"The last lines of {path}:", *(f"  {line}" for line in last)])
