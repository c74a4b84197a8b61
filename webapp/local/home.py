"""ISENTROPE_HOME while `up` runs: one launcher at a time, and which service URLs and children it has."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any


class AlreadyRunning(Exception):
    """Another launcher holds the folder; the message says which and where."""


class Home:
    """The state folder, held by one launcher."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self._lock: Any = None

    def claim(self) -> None:
        """Make the folders and take the lock, which the kernel releases even if the launcher is killed."""
        for folder in (self.path, self.logs, self.path / "runs", self.path / "datasets", self.path / "models"):
            folder.mkdir(parents=True, exist_ok=True)
        # Held for the launcher's whole life.
        self._lock = open(self.path / "up.lock", "a+")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            raise AlreadyRunning(
                f"Isentrope already runs on {self.path}: {self._lock.read().strip()}. Open it there, or stop it first."
            ) from None
        self.announce("starting")

    def announce(self, where: str) -> None:
        """Say in the lock file where the site is, for a second launcher that is refused."""
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()}, {where}")
        self._lock.flush()

    def release(self) -> None:
        self._lock.close()

    def record(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file that only the owner reads, whole or not at all."""
        draft = self.path / f"{name}.new"
        with open(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file, indent=1)
        draft.replace(self.path / name)

    def recall(self, name: str) -> dict[str, Any]:
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else {}
