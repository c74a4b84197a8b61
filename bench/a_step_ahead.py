"""What one update between drawing and learning costs: `python bench/a_step_ahead.py`, about ten minutes.

Split the sum with the built-in tiny model: on-policy, and with each batch drawn an update too early, without and with
the correction by token, at several learning rates. Batches are drawn too early in the trainer's own process, which
gives the steps of `sampling.staleness: 1` (tests/trainer/server/test_behind.py) without a server.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from _shared import machine, table

from tests.trainer.runs import make, metrics, small, train
from tests.trainer.server.test_behind import too_early

WAYS = {"on-policy": (False, "off"), "a step ahead": (True, "off"), "a step ahead, by token": (True, "token")}
ENDS = 5  # steps averaged


def trained(rate: float, seed: int, steps: int, *, early: bool, correction: str) -> tuple[float, float]:
    """Train once; return the reward of the last steps and how far the average update moved log-probs, nats."""
    config = small(
        seed=seed,
        task={"type": "split_sum"},
        sampling={"prompts_per_step": 16, "samples_per_prompt": 16, "temperature": 1.6, "max_completion_tokens": 12},
        objective={"parts": [{"type": "ppo_clip", "correction": correction}]},
        optimiser={"steps": steps, "learning_rate": rate, "old_logprobs": "score"},
        evaluation={"every_steps": 0},
        checkpoint={"every_steps": 0},
    )
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        run = make(Path(folder) / "run", config)
        train(run, prepare=too_early if early else None)
        found = metrics(run)
    last = statistics.fmean(found[step]["reward/mean"] for step in range(steps - ENDS + 1, steps + 1))
    return last, statistics.fmean(found[step]["mismatch/mean_abs"] for step in range(2, steps + 1))


def main() -> None:
    """Print a row for each learning rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[11, 12, 13])
    parser.add_argument("--rates", type=float, nargs="*", default=[3e-4, 1.5e-4, 5e-5])
    parser.add_argument("--steps", type=int, default=24)
    chosen = parser.parse_args()
    print(machine(), flush=True)
    rows = []
    for rate in chosen.rates:
        cells, moves = [], list[float]()
        for early, correction in WAYS.values():
            runs = [trained(rate, seed, chosen.steps, early=early, correction=correction) for seed in chosen.seeds]
            cells.append(", ".join(f"{reward:.2f}" for reward, _ in runs))
            moves += [moved for _, moved in runs if early and correction == "off"]
        rows.append([f"{rate:g}", f"{statistics.fmean(moves):.3f}", *cells])
    print(f"\n{table(['learning rate', 'an update moves, nats', *WAYS], rows)}")


if __name__ == "__main__":
    main()
