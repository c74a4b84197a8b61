"""The trainer's processes: start them as a session of their own, know them again, end them all.

Nothing ties them to this worker's life: they survive its restart, and are known again by pid, start time and boot.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
from django.conf import settings

from trainer.events import RunFolder
from trainer.rollout.server.launcher import PART
from webapp.runs.models import Run
from webapp.settings import env_int

# What a trainer may know of our environment: tools, libraries and accelerators, none of the web app's secrets.
PASSED = re.compile(
    r"PATH|HOME|USER|LANG|LC_.*|TZ|TMPDIR|VIRTUAL_ENV|LD_.*|PYTHON.*|XDG_.*|SSL_.*|REQUESTS_CA_BUNDLE|(HTTPS?|NO|ALL)_PROXY|"
    r"CUDA.*|NVIDIA_.*|NCCL_.*|GLOO_.*|TORCH.*|PYTORCH_.*|TRITON_.*|HF_.*|TRANSFORMERS_.*|TOKENIZERS_.*|VLLM_.*|"
    r"ACCELERATE_.*|MKL_.*|ISENTROPE_.*",
    re.IGNORECASE,
)
SECRET = re.compile(r"ISENTROPE_.*(SECRET|PASSWORD|KEY|TOKEN|OIDC)", re.IGNORECASE)
NICE = min(19, max(0, env_int("ISENTROPE_TRAINER_NICE", 5)))  # of trainers that compute on the CPU
SAME_START = 2.0  # seconds; the clock that dates processes may be corrected meanwhile


@cache
def here() -> str:
    """Return this boot and pid namespace: where a pid means something."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    if not boot.exists():
        return f"{psutil.boot_time():.0f}"
    return f"{boot.read_text().strip()}:{os.stat(space).st_ino if space.exists() else 0}"[:64]


@dataclass(frozen=True)
class Process:
    """A process that can be told from a later one with the same pid."""

    pid: int
    started: float  # Unix seconds
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the identity of a living process; raises psutil.NoSuchProcess."""
        return cls(pid, psutil.Process(pid).create_time(), here())

    @classmethod
    def recorded(cls, run: Run) -> Process | None:
        return cls(run.pid, run.pid_started or 0.0, run.boot_id) if run.pid else None

    @property
    def alive(self) -> bool:
        """Whether it runs here and now; a zombie, another boot and a reused pid do not count."""
        if self.boot != here():
            return False
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.started) < SAME_START
            return same and found.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return False

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the process and its group; does nothing once it is gone."""
        if self.alive:
            _kill(os.killpg, self.pid, number)


def spawn(run: Run, gpus: list[int]) -> subprocess.Popen[bytes]:
    """Start the trainer of the current attempt; raises OSError. Its output goes to trainer.log, never to a pipe."""
    with open(run.folder.log, "ab") as log:
        child = subprocess.Popen(
            command(run),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(run, gpus),
            cwd=settings.BASE_DIR,
            start_new_session=True,
        )
    if not gpus:
        give_way(child.pid)
    return child


def give_way(pid: int) -> None:
    """Let pages, services and this worker come before a process that has just been started, and what it will start.

    Linux shares a desktop's cores between sessions before it looks at niceness, so that its session is told, too.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE))


def command(run: Run) -> list[str]:
    """Return the command line: the trainer itself, or the launcher that starts one for each GPU or CPU process."""
    count = processes(run)
    if count == 1:
        return [*trainer(), str(run.folder.path)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    # The launcher puts its own interpreter in front.
    return [*launcher, *trainer()[1:], str(run.folder.path)]


def trainer() -> list[str]:
    """Return the trainer's command; ISENTROPE_TRAINER replaces it (a wrapper that starts a container, a stand-in)."""
    return shlex.split(os.environ.get("ISENTROPE_TRAINER", "")) or [sys.executable, "-m", "trainer"]


def processes(run: Run) -> int:
    """Return how many trainer processes the run wants: one for each GPU that is not a server's, else as configured."""
    resources = run.config.get("resources", {})
    return int(resources.get("gpus", 0) or resources.get("processes", 1))


def environment(run: Run, gpus: list[int]) -> dict[str, str]:
    """Return the trainer's environment; the run and attempt in it mark every process it will ever start."""
    threads = str(run.config.get("resources", {}).get("cpu_threads", 1))
    passed = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name) and not SECRET.match(name)}
    marks = {
        "ISENTROPE_RUN": run.pk,
        "ISENTROPE_ATTEMPT": str(run.attempt),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML counts like this, and our GPU rows are NVML's
        "CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in gpus),
        "PYTHONUNBUFFERED": "1",
        # Unset, they would let a config name any path of this machine.
        "ISENTROPE_MODEL_ROOTS": os.pathsep.join(map(str, settings.MODEL_ROOTS)),
        "ISENTROPE_DATASET_ROOTS": os.pathsep.join(map(str, settings.DATASET_ROOTS)),
    }
    if not gpus:
        marks |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": threads}
    return passed | marks


def members(run_id: str, attempt: int) -> Iterator[psutil.Process]:
    """Yield every process of an attempt, also those that left its group or lost their parent."""
    for process in psutil.process_iter():
        try:
            found = process.environ()
        except (psutil.Error, OSError):
            continue
        if found.get("ISENTROPE_RUN") == run_id and found.get("ISENTROPE_ATTEMPT") == str(attempt):
            yield process


def find(run: Run) -> Process | None:
    """Return the attempt's first process, if one was started and never written down."""
    leaders = [process for process in members(run.pk, run.attempt) if _is_trainer(process)]
    oldest = min(leaders, key=lambda process: process.create_time(), default=None)
    return Process.of(oldest.pid) if oldest else None


def _is_trainer(process: psutil.Process) -> bool:
    """Return whether a process of an attempt leads it: a rollout server leads a session, too, and says what it is."""
    return os.getsid(process.pid) == process.pid and PART not in process.environ()


def kill_members(run_id: str, attempt: int) -> int:
    """SIGKILL whatever is left of an attempt; return how many processes that was."""
    count = 0
    for process in members(run_id, attempt):
        _kill(os.kill, process.pid, signal.SIGKILL)
        count += 1
    return count


def log_tail(folder: RunFolder, *, lines: int = 50) -> str:
    """Return the last lines of trainer.log, at most 16 KiB, fit for a text column and without access tokens."""
    if not folder.log.exists():
        return ""
    with open(folder.log, "rb") as file:
        file.seek(max(0, folder.log.stat().st_size - 16 * 1024))
        text = file.read().decode("utf-8", "replace").replace("\x00", "�")
    return re.sub(r"\b(hf_|sk-)[A-Za-z0-9_-]{8,}", r"\1…", "\n".join(text.splitlines()[-lines:]))


def _kill(kill, pid: int, number: signal.Signals) -> None:
    try:
        kill(pid, number)
    except ProcessLookupError:
        return  # it went by itself
