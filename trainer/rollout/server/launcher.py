"""Launcher: the server process that belongs to a run, from its start to its end.

The trainer starts it in a session of its own, output to `server.log` in the run folder, and ends it with the attempt.
A trainer that is killed leaves it without a client: it ends by itself after LINGER seconds, and a trainer that comes
back earlier finds it through `server/card.json`. The environment marks it as part of the attempt, so a worker that ends
an attempt finds it too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ValidationError

import trainer
from trainer.config import RunConfig
from trainer.errors import ConfigError, ResourceError
from trainer.events import RunFolder
from trainer.rollout.server import secret

LINGER = 120.0  # seconds without a trainer after which the server of a run ends by itself
GRACE = 15.0  # seconds to end when asked to
LAST_WORDS = 2048  # bytes
LOOK = 0.05  # seconds between looks at the card
PART = "ISENTROPE_PART"  # tells a worker that this process of an attempt is not its trainer
DISTRIBUTED = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*|ACCELERATE_.*|OMPI_.*|PMI_.*"
)


class Card(BaseModel):
    """card.json: where a server is, or why there is none."""

    pid: int
    address: str = ""
    error: str = ""
    field: str = ""
    resource: bool = False  # whether the error is one of memory or devices

    def write(self, path: Path) -> None:
        """Replace the file in one piece."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(self.model_dump_json(), "utf-8")
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> Card | None:
        """Return what a file says; None where there is nothing that could be read."""
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError):
            return None


class Launcher:
    """Starts, finds again and ends the server of a run folder."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
        self.home = folder.server
        self.card_file, self.token_file = self.home / "card.json", self.home / "token"
        self.process: subprocess.Popen[bytes] | None = None

    def token(self) -> str:
        """Return the run's token, made when first asked for."""
        self.home.mkdir(parents=True, exist_ok=True)
        return secret.read(self.token_file) if self.token_file.exists() else secret.make(self.token_file)

    def card(self) -> Card | None:
        """Return where the run's server is, by the word of the last one; it may be gone."""
        found = Card.read(self.card_file)
        return found if found and found.address else None

    def start(self) -> Card:
        """Start a server and wait until it listens; raises what kept it from that."""
        self.token()
        self.card_file.unlink(missing_ok=True)
        with self.folder.server_log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(),
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + self.config.sampling.server.start_timeout
        while time.monotonic() < deadline:
            card = Card.read(self.card_file)
            if card and card.pid == self.process.pid:
                return self._usable(card)
            if self.process.poll() is not None:
                code = self.process.returncode
                raise ResourceError(f"the rollout server ended with code {code} while it started; see {self._log}")
            time.sleep(LOOK)
        self.kill()
        raise ResourceError(
            f"the rollout server did not start within {self.config.sampling.server.start_timeout:g} seconds; see "
            f"{self._log}, or raise sampling.server.start_timeout"
        )

    def last_words(self) -> str:
        """Return the end of the server's output, for the trainer's log: pages show no other."""
        with contextlib.suppress(OSError), self.folder.server_log.open("rb") as log:
            log.seek(max(0, self.folder.server_log.stat().st_size - LAST_WORDS))
            return "\n".join(f"| {line}" for line in log.read().decode("utf-8", "replace").splitlines()[-8:])
        return ""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process of the run at a time look for a server and start one."""
        self.home.mkdir(parents=True, exist_ok=True)
        with open(self.home / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, or the process dies
            yield

    def end(self, pid: int | None = None) -> None:
        """Wait for a server that was asked to end, then kill it: the one started here, and that of another process."""
        deadline = time.monotonic() + GRACE
        while self._lives(pid) and time.monotonic() < deadline:
            time.sleep(LOOK)
        self.kill(pid if self._lives(pid) else None)
        self.kill()
        if pid:
            self.card_file.unlink(missing_ok=True)

    def kill(self, pid: int | None = None) -> None:
        """Kill a server with all it started itself: the one started here, and reap it, or another process's."""
        if self.process is not None and pid in (None, self.process.pid):
            _kill_group(self.process.pid)
            self.process.wait()
            self.process = None
        elif pid:
            _kill_group(pid)

    def _lives(self, pid: int | None) -> bool:
        if self.process is not None and self.process.poll() is None:
            return True
        return pid is not None and Path(f"/proc/{pid}/exe").exists()  # what is dead and not reaped has none

    @property
    def _log(self) -> str:
        return f"{self.folder.server_log.name} in the run folder"

    def _usable(self, card: Card) -> Card:
        if not card.error:
            return card
        self.kill()
        if card.resource:
            raise ResourceError(f"the rollout server could not start: {card.error}", card.field)
        raise ConfigError(f"the rollout server could not start: {card.error}", card.field)

    def _command(self) -> list[str]:
        options = {
            "--card": self.card_file, "--token-file": self.token_file, "--weights-root": self.home, "--linger": LINGER,
        }  # fmt: skip
        flat = [str(word) for option in options.items() for word in option]
        return [sys.executable, "-m", "trainer.rollout.server", str(self.folder.config), *flat]

    def _environment(self) -> dict[str, str]:
        passed = {name: value for name, value in os.environ.items() if not DISTRIBUTED.fullmatch(name)}
        root = str(Path(trainer.__file__).resolve().parents[1])
        passed["PYTHONPATH"] = os.pathsep.join(filter(None, [root, passed.get("PYTHONPATH", "")]))
        return {**passed, PART: "server", "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": self._devices()}

    def _devices(self) -> str:
        """Return the run's GPUs behind those that the trainer's processes use, as CUDA_VISIBLE_DEVICES names them."""
        first, count = self.config.resources.gpus, self.config.sampling.server.gpus
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(first + count)]
        if count and len(names) < first + count:
            raise ResourceError(
                f"the run needs {first + count} GPUs, {first} for the trainer and {count} for its server, and sees "
                f"{len(names)}; lower resources.gpus or sampling.server.gpus"
            )
        return ",".join(names[first : first + count])


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
