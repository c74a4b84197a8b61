"""Tokens that branching rollouts generate beside plain groups: `python bench/branching.py [--steps 2] [--samples 30]`.

The built-in tiny model samples the same prompts with every method at the start of its training: the learning rate is
next to nothing, so all see the same policy. Shares are of the tokens that as many whole completions took.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _shared import ROOT, machine, table

from trainer.config import RunConfig, load
from trainer.events import RunFolder

LIVELY = {"entropy_high": 1.0, "entropy_low": 0.3, "branch_confidence": 6.0, "min_depth": 1, "rise": 0.0}
METHODS: dict[str, tuple[str, dict[str, Any] | None]] = {  # name: preset, changes to its rollout part
    "plain groups": ("grpo", None),
    "CURE, 3 continuations": ("cure", {"type": "cure", "min_characters": 1}),
    "CURE, random places": ("cure", {"type": "cure", "min_characters": 1, "choose": "random"}),
    "ETMR, N = 2, B = 2": ("ettrl", None),
    "ETMR, N = 3, B = 2": ("ettrl", {"type": "etmr", "forks": 3}),
    "EPTree by surprisal, N = 2, T = 2": ("treerl", None),
    "EPTree by entropy, N = 2, T = 2": ("treerl", {"type": "eptree", "measure": "entropy"}),
    "EPTree by surprisal, N = 2, T = 1, L = 2": ("treerl", {"type": "eptree", "continuations": 1, "rounds": 2}),
    "ECHO, lower thresholds": ("echo-rollout", {"type": "echo_rollout", **LIVELY}),
    "ROSE by entropy, epsilon = 0.5": ("rose-entropy", None),
}


def run(config: RunConfig) -> dict[str, float]:
    """Train in a process of its own; return the last step's metrics."""
    with tempfile.TemporaryDirectory() as under:
        folder = RunFolder(Path(under))
        folder.config.write_text(config.model_dump_json(), "utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "trainer", under], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        lines = [json.loads(line) for line in folder.events.read_text("utf-8").splitlines()]
    return [event["values"] for event in lines if event["type"] == "metrics" and "tokens/total" in event["values"]][-1]


def config_of(preset: str, part: dict[str, Any] | None, samples: int, steps: int) -> RunConfig:
    return load({
        "seed": 5,
        "objective": {"preset": preset, "parts": [part] if part else []},
        "sampling": {"prompts_per_step": 32, "samples_per_prompt": samples},
        "optimiser": {"steps": steps, "learning_rate": 1e-12},
        "evaluation": {"every_steps": 0, "prompts": 1, "samples_per_prompt": 1},
        "recording": {"live_samples": 0, "max_samples": 1},
    })  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=2)
    options.add_argument("--samples", type=int, default=30)
    given = options.parse_args()
    rows, plain = [], 0.0
    for name, (preset, part) in METHODS.items():
        found = run(config_of(preset, part, given.samples, given.steps))
        tokens = found["tokens/total"] / given.steps / 32 / given.samples
        plain = plain or tokens
        names = ("whole", "forks", "fork_position", "waves")
        figures = [f"{found[key]:.3g}" if (key := f"rollout/{figure}") in found else "–" for figure in names]
        rows.append([name, f"{tokens:.2f}", f"{tokens / plain:.2f}", *figures])
    print(machine())
    print(f"{given.steps} steps of 32 prompts, {given.samples} completions of each\n")
    print(table(["method", "tokens each", "of plain", "whole", "forks", "place of fork", "waves"], rows))


if __name__ == "__main__":
    main()
