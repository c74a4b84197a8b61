"""`manage.py up` as a person meets it: real processes, real services, one folder."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from webapp.local.valkey import free_port

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.e2e


class Site:
    """`manage.py up` over one folder."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port, self.output = home, port, home.parent / "up.log"

    def start(self) -> str:
        """Start, wait for the greeting, return what was said."""
        self.process = self._spawn("up", "--port", str(self.port))
        deadline = time.monotonic() + 120
        while "Ctrl-C stops" not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)
        return self.said()

    def said(self) -> str:
        return self.output.read_text()

    def status(self, path: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
            return answer.status

    def processes(self) -> list[psutil.Process]:
        """Return every process that belongs to this folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.home) in " ".join(process.cmdline()) or process.environ().get("ISENTROPE_HOME") == str(
                    self.home
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(self._command(*arguments), cwd=ROOT, env=self._env(), capture_output=True, text=True)

    def _spawn(self, *arguments: str) -> subprocess.Popen:
        with self.output.open("w") as output:
            return subprocess.Popen(self._command(*arguments), cwd=ROOT, env=self._env(), stdout=output, stderr=output)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "manage.py", *arguments]

    def _env(self) -> dict[str, str]:
        replaced = ("DATABASE_URL", "REDIS_URL", "ISENTROPE_DATABASE_POOL", "ISENTROPE_URL")
        return {**{k: v for k, v in os.environ.items() if k not in replaced}, "ISENTROPE_HOME": str(self.home)}


@pytest.fixture
def site():
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="isentrope-up-"))
    folder.chmod(0o755)
    site = Site(folder / "home", free_port())
    yield site
    for process in site.processes():
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def test_it_starts_survives_and_stops(site):
    first = site.start()
    link = re.search(r"http://127\.0\.0\.1:\d+(/sign-in/\S+)", first).group(1)
    assert site.status(link) == 200

    # A second launcher over the same folder would share its databases; over the same port, its visitors.
    refused = site.run("up", "--port", str(free_port()))
    assert refused.returncode != 0
    assert "already runs" in refused.stderr
    neighbour = Site(site.home.with_name("neighbour"), site.port)
    taken = neighbour.run("up", "--port", str(site.port))
    assert f"Port {site.port} is taken" in taken.stderr

    # A killed web server comes back by itself.
    web = next(process for process in site.processes() if "serve" in process.cmdline())
    web.kill()
    _until(lambda: "[web] started again" in site.said())
    _until(lambda: _answers(site))

    # The launcher is killed and leaves everything behind; the next start takes over and knows the first link.
    site.process.kill()
    site.process.wait()
    assert site.processes()
    again = site.start()
    assert "left by an earlier start" in again
    assert site.status(link) == 200

    site.process.send_signal(signal.SIGTERM)
    assert site.process.wait(60) == 0
    _until(lambda: not site.processes())


def _answers(site: Site) -> bool:
    try:
        return site.status("/health/live") == 200
    except OSError:
        return False


def _until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
