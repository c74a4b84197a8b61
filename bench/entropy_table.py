"""Plain GRPO beside the entropy-target objective: several seeds, same budget, held-out figures and entropy error.

    python bench/entropy_table.py --seeds 0 1 2 --out /tmp/entropy-table

Writes one Markdown table to standard output. Every figure comes from the events of a run folder: `avg@k` and the
like from the last evaluation, the entropy columns from the last 20 steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
COLUMNS = ("avg@16", "greedy", "pass@16", "distinct@16")


def run(config: Path, *, seed: int, out: Path) -> float:
    """Train once and return wall seconds; an existing finished folder is not trained again."""
    if (out / "exit.json").exists():
        return float("nan")
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "trainer", "run", str(config), "--out", str(out), "--set", f"seed={seed}"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.monotonic() - began


def events(folder: Path) -> list[dict]:
    """Return every event of a run folder."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]


def row(folder: Path) -> dict[str, float]:
    """Return the figures of one finished run."""
    seen = events(folder)
    metrics = [event["values"] for event in seen if event["type"] == "metrics" and "loss" in event["values"]]
    evaluations = [event["values"] for event in seen if event["type"] == "evaluation"]
    last = metrics[-20:]
    found = {f"start {name}": evaluations[0].get(name, float("nan")) for name in COLUMNS}
    found |= {name: evaluations[-1].get(name, float("nan")) for name in COLUMNS}
    found["entropy start"] = metrics[0]["entropy/mean"]
    found["entropy end"] = statistics.fmean(values["entropy/mean"] for values in last)
    targets = [values["entropy/target_low"] for values in last if "entropy/target_low" in values]
    if targets:
        found["target"] = statistics.fmean(targets)
        errors = [abs(v["entropy/mean"] - v["entropy/target_low"]) / v["entropy/target_low"] for v in last]
        found["mean error %"] = 100 * statistics.fmean(errors)
        found["worst step %"] = 100 * max(errors)
    found["s/step"] = statistics.median(values["time/step"] for values in metrics)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("/tmp/isentrope-entropy-table"))
    parser.add_argument("--configs", nargs="+", default=["countdown", "countdown-entropy-target"])
    options = parser.parse_args()
    rows: list[tuple[str, int, dict[str, float]]] = []
    for seed in options.seeds:  # interleaved, so that a slow hour hits both alike
        for name in options.configs:
            folder = options.out / f"{name}-{seed}"
            run(EXAMPLES / f"{name}.toml", seed=seed, out=folder)
            rows.append((name, seed, row(folder)))
    rows.sort(key=lambda entry: entry[:2])
    names = list(dict.fromkeys(key for _, _, found in rows for key in found))
    print("| run | seed | " + " | ".join(names) + " |")
    print("|---|---|" + "---|" * len(names))
    for name, seed, found in rows:
        print(
            f"| {name} | {seed} | " + " | ".join(f"{found[key]:.3g}" if key in found else "–" for key in names) + " |"
        )


if __name__ == "__main__":
    main()
