"""What a measuring process needs: its job, its answer, its memory. Standard library only: other environments use it."""

from __future__ import annotations

import ctypes
import json
import resource
import sys
from pathlib import Path
from typing import Any


def job() -> dict[str, Any]:
    """Return the job that this process was started with."""
    return json.loads(Path(sys.argv[1]).read_text("utf-8"))


def answer(job: dict[str, Any], result: dict[str, Any]) -> None:
    """Write what this process found to where the job says."""
    Path(job["out"]).write_text(json.dumps(result), "utf-8")


def resident() -> int:
    """Return the bytes of memory this process holds now."""
    return _status("VmRSS")


def forget_peak() -> bool:
    """Let `peak` count from here on; return whether the kernel allows that (else it counts from the start)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def trim() -> None:
    """Hand memory that is not in use back to the kernel, where the C library can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def peak() -> int:
    """Return the most bytes of memory this process held at once."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)
