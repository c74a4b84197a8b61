"""Running both sides: each job in a process of its own, the sides taking turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

HERE = Path(__file__).resolve().parent
OPTIMISER = {"learning_rate": 1e-6, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "max_gradient_norm": 1.0}
CLIP_NOTHING = 1e9  # both sides save gradients before they clip them; this keeps clipping out of the comparison anyway


@dataclass
class Side:
    """One column of the comparison and what its processes found."""

    title: str
    python: Path
    script: str
    changes: dict[str, Any] = field(default_factory=dict)  # laid over the job
    found: list[dict[str, Any]] = field(default_factory=list)
    refused: str = ""  # why it cannot run here, in the words of the error

    def run(self, job: dict[str, Any], folder: Path) -> None:
        """Start a process on the job and keep what it answers, or why it cannot."""
        if self.refused:
            return
        out = folder / "answer.json"
        out.unlink(missing_ok=True)
        whole = {**job, **{key: value for key, value in self.changes.items() if key != "trl"}, "out": str(out)}
        whole["trl"] = {**job["trl"], **self.changes.get("trl", {})}
        (folder / "job.json").write_text(json.dumps(whole), "utf-8")
        threads = str(job["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        began = time.perf_counter()
        command = [str(self.python), str(HERE / self.script), str(folder / "job.json")]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        if ended.returncode or not out.is_file():
            self.refused = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"  {self.title}: {self.refused}", file=sys.stderr, flush=True)
            return
        self.found.append(json.loads(out.read_text("utf-8")))
        seconds = median(self.found[-1]["seconds"])
        print(
            f"  {self.title}: {seconds:.2f} s a step, {median(self.found[-1]['cpu']):.2f} s of CPU, "
            f"{time.perf_counter() - began:.0f} s in all, load {os.getloadavg()[0]:.1f}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def values(self, name: str) -> list[float]:
        """Return a figure of every timed step of every process."""
        return [value for found in self.found for value in found[name]]

    def middle(self, name: str) -> float:
        return median(self.values(name))

    def spread(self, name: str) -> tuple[float, float]:
        """Return the quartiles of a figure."""
        values = self.values(name)
        if len(values) < 2:
            return values[0], values[0]
        low, _, high = quantiles(values, n=4, method="inclusive")
        return low, high

    def peak(self) -> float:
        """Return the median over processes of peak memory, bytes."""
        return median(found["peak_bytes"] for found in self.found)

    def grown(self) -> float:
        """Return the same less what the process held when the model was loaded."""
        return median(found["peak_bytes"] - found["loaded_bytes"] for found in self.found)


def alternate(sides: list[Side], job: dict[str, Any], rounds: int, folder: Path) -> None:
    """Let the sides take turns: A B C, A B C, ..."""
    for number in range(rounds):
        print(f" round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for side in sides:
            side.run(job, folder)
