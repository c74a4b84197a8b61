"""Small runs for tests: a config that trains in a second, and ways to run it and read what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.config import RunConfig, load
from trainer.events import RunFolder

ROOT = Path(__file__).parents[2]


def small(**changes: Any) -> RunConfig:
    """Return a config of 6 steps with 4 prompts of 4 samples; `section={...}` changes fields of a section."""
    data: dict[str, Any] = {
        "seed": 11,
        "sampling": {"prompts_per_step": 4, "samples_per_prompt": 4, "max_completion_tokens": 8},
        "optimiser": {"steps": 6, "warmup_steps": 2},
        "evaluation": {"every_steps": 3, "prompts": 4, "samples_per_prompt": 4},
        "checkpoint": {"every_steps": 3},
    }
    for section, fields in changes.items():
        data[section] = {**data.get(section, {}), **fields} if isinstance(fields, dict) else fields
    return load(data)


def make(path: Path, config: RunConfig) -> RunFolder:
    """Make a run folder."""
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    folder.config.write_text(config.model_dump_json(), "utf-8")
    return folder


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a trainer process."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ISENTROPE_ATTEMPT")
    return {name: value for name, value in os.environ.items() if name not in names} | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        **changes,
    }


def start(folder: RunFolder, **changes: str) -> subprocess.Popen[bytes]:
    """Start the trainer as its own process, as a supervisor does."""
    with folder.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "trainer", str(folder.path)],
            stdout=log,
            stderr=log,
            env=environment(**changes),
            start_new_session=True,
        )


def events(folder: RunFolder, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the events of a run, or those of one type."""
    found = [json.loads(line) for line in folder.events.read_text("utf-8").splitlines()]
    return [event for event in found if kind is None or event["type"] == kind]


def metrics(folder: RunFolder, *, timeless: bool = True) -> dict[int, dict[str, float]]:
    """Return {step: values}, the last word on each; without what depends on the clock or the machine."""
    found: dict[int, dict[str, float]] = {}
    for event in events(folder, "metrics"):
        found.setdefault(event["step"], {}).update(event["values"])
    if not timeless:
        return found
    clock = ("time/", "memory/", "tokens/per_second")
    return {
        step: {name: value for name, value in values.items() if not name.startswith(clock)}
        for step, values in found.items()
    }


def train(folder: RunFolder, *, attempt: int = 1, prepare: Callable[[Any], None] | None = None) -> tuple[str, str]:
    """Train in this process; `prepare` may touch the trainer before its first step. Returns (status, reason)."""
    import torch

    from trainer.distributed import World
    from trainer.loop import Trainer
    from trainer.stream import Stream

    torch.set_num_threads(1)
    stream = Stream(folder, attempt)
    trainer = Trainer(folder, load(folder.config), attempt, stream, World(cpu=True))
    try:
        if prepare:
            prepare(trainer)
        return trainer.run()
    finally:
        trainer.close()
        stream.close()
        torch.set_deterministic_debug_mode("default")  # what the loop asks for is not every other test's wish
