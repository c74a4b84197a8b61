"""The process that grades: `python -m trainer.rewards.child` reads samples from its input and answers one by one.

It holds no secrets (the pool hands it a small environment), ignores the signals meant for the trainer, and limits its
own memory, processor time per sample and file writes, so that it ends by itself even where its parent was killed.
It is not a sandbox for foreign code: the network and the file system's readable part stay within reach.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import sys
import time
from dataclasses import asdict
from typing import Any

from trainer.part import Part
from trainer.rewards import wire
from trainer.rewards.scoring import score_sample
from trainer.tasks.base import Row


def build(description: dict[str, Any]) -> Any:
    """Return the part that `describe` described."""
    module, _, name = description["class"].partition(":")
    return getattr(importlib.import_module(module), name).model_validate(description["settings"])


def describe(part: Part) -> dict[str, Any]:
    """Return class and settings of a part as JSON values, so that a child can build an equal one."""
    return {"class": f"{type(part).__module__}:{type(part).__qualname__}", "settings": part.model_dump(mode="json")}


def private_pipes() -> tuple[int, int]:
    """Return our own copies of input and output, and point 0 and 1 at nothing: a print must not garble the answers."""
    pipes = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    return pipes


def limit(memory_bytes: int) -> None:
    """Bound the address space, forbid core dumps and written files."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def arm(seconds: float) -> None:
    """Have the kernel end this process `seconds` from now, of processor time or of the clock.

    Both signals keep their default action, so they also end a loop inside C that never returns to Python.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds) + 1, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def serve(source: int, sink: int) -> None:
    """Answer until the input closes."""
    setup: dict[str, Any] = wire.read(source) or {}
    sys.dont_write_bytecode = True
    limit(setup["memory_bytes"])
    try:
        task, rewards = build(setup["task"]), [build(reward) for reward in setup["rewards"]]
        for part in (task, *rewards):
            part.prepare()
    except Exception as error:
        wire.write(sink, {"failed": str(error) or type(error).__name__, "field": getattr(error, "field", "")})
        return
    wire.write(sink, {"ready": True})
    while (batch := wire.read(source)) is not None:
        for row, completion in batch:
            arm(2 * setup["deadline_seconds"] + 1)  # the pool kills sooner; this is for a pool that is gone
            scored = score_sample(task, rewards, Row(**row), completion)
            signal.setitimer(signal.ITIMER_REAL, 0)
            wire.write(sink, asdict(scored))
            if scored.reason.startswith("error: MemoryError"):
                wire.write(sink, {"bye": True})  # what is left of the heap is not worth trusting
                return


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    serve(*private_pipes())
