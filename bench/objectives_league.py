"""Every preset on Countdown with the tiny model: same budget, same seeds, plain numbers, no picking.

    python bench/objectives_league.py --out /tmp/league --seeds 0 1 2 --jobs 2

Trains what the folder does not hold yet and writes docs/objectives-league.md. Presets run with their published
settings; those whose statistics the trainer cannot supply are listed, not run. Seeds go round before presets do, so an
interrupted league is still balanced.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.config import RunConfig, load  # noqa: E402  (the path comes first)
from trainer.errors import ConfigError  # noqa: E402
from trainer.events import RunFolder  # noqa: E402
from trainer.objectives import PRESETS  # noqa: E402

STEPS, LAST = 60, 15  # LAST steps are averaged where the table speaks of the end
BUDGET: dict[str, Any] = {
    "sampling": {"prompts_per_step": 16, "samples_per_prompt": 8, "max_completion_tokens": 8},
    "optimiser": {"steps": STEPS, "minibatches_per_step": 2, "learning_rate": 2e-4, "warmup_steps": 3},
    "evaluation": {"every_steps": STEPS, "prompts": 64, "samples_per_prompt": 16},
    "checkpoint": {"every_steps": 0},
    "recording": {"every_steps": 10**6, "live_samples": 0, "max_samples": 1},
}
WHAT = (
    "Countdown with the built-in 0.34 M parameter model, {steps} steps of 16 prompts × 8 completions in 2 minibatches "
    "(so that ratios leave 1), learning rate 2e-4, {seeds} seeds, the same prompts for all. Held-out figures are over "
    "64 prompts × 16 samples; entropy and its error are over the last {last} steps. Figures are means over "
    "seeds ± half the range."
)


def config(preset: str, seed: int) -> RunConfig:
    """Return the run of a preset; raises ConfigError where the trainer cannot run it."""
    return load({**BUDGET, "seed": seed, "objective": {"preset": preset}})


def train(preset: str, seed: int, out: Path) -> None:
    """Train once, in this process; figures land in the run folder."""
    import torch

    from trainer.distributed import World
    from trainer.loop import Trainer
    from trainer.stream import Stream

    torch.set_num_threads(1)
    path = out / f"{preset}-{seed}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    folder, began = RunFolder(path), time.monotonic()
    folder.config.write_text(config(preset, seed).model_dump_json(), "utf-8")
    stream = Stream(folder, 1)
    trainer, trouble, spent = None, "", math.nan
    try:
        trainer = Trainer(folder, load(folder.config), 1, stream, World(cpu=True))
        started = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.run()
        spent = time.process_time() - started
    except Exception:  # one broken objective must not end the league; the page names it
        trouble = traceback.format_exc()
    finally:
        if trainer is not None:
            trainer.close()
        stream.close()
    done = {"rc": int(bool(trouble)), "seconds": time.monotonic() - began, "cpu": spent, "trouble": trouble}
    (path / "done.json").write_text(json.dumps(done))


def train_all(queue: list[tuple[str, int]], out: Path, jobs: int) -> None:
    """Train what is missing, `jobs` at a time."""
    missing = [(preset, seed) for preset, seed in queue if not (out / f"{preset}-{seed}" / "done.json").exists()]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = {pool.submit(train, preset, seed, out): (preset, seed) for preset, seed in missing}
        for done, task in enumerate(as_completed(tasks), 1):
            task.result()
            preset, seed = tasks[task]
            print(f"{done}/{len(missing)} {preset} seed {seed}", flush=True)


def figures(folder: Path) -> dict[str, float]:
    """Return the figures of one run; empty where it did not finish."""
    if json.loads((folder / "done.json").read_text())["rc"] != 0:
        return {}
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    steps = [event["values"] for event in events if event["type"] == "metrics" and "loss" in event["values"]]
    held_out = [event["values"] for event in events if event["type"] == "evaluation"][-1]
    last = steps[-LAST:]
    found = {
        "reward": statistics.fmean(values["reward/task"] for values in last),
        "avg": held_out["avg@16"],
        "pass8": held_out["pass@8"],
        "distinct": held_out.get("distinct@16", math.nan),
        "entropy": statistics.fmean(values["entropy/mean"] for values in last),
        "seconds": json.loads((folder / "done.json").read_text())["cpu"] / STEPS,
        "start": steps[0]["entropy/mean"],
    }
    aimed = [values for values in last if "entropy/target_low" in values]
    if aimed:
        floor = folder.name.startswith("skywork-adaptive")  # its bonus counts below the target only
        found["error"] = statistics.fmean(_miss(values, floor=floor) for values in aimed)
    return found


def _miss(values: dict[str, float], *, floor: bool) -> float:
    """Return how far entropy is outside its band, relative to the nearer edge; a floor has no upper one."""
    low, high, entropy = values["entropy/target_low"], values["entropy/target_high"], values["entropy/mean"]
    high = math.inf if floor else high
    edge = low if entropy < low else high
    return 0.0 if low <= entropy <= high else abs(entropy - edge) / max(edge, 1e-9)


def cell(values: list[float], digits: int = 3, scale: float = 1.0) -> str:
    """Return mean ± half range over seeds."""
    values = [value * scale for value in values if math.isfinite(value)]
    if not values:
        return "–"
    return f"{statistics.fmean(values):.{digits}f} ± {(max(values) - min(values)) / 2:.{digits}f}"


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Return the league, best held-out reward first."""
    head = [
        "preset",
        "task reward",
        "held-out reward",
        "pass@8",
        "distinct right of 16",
        "entropy, nats",
        "error, %",
        "CPU s/step",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    order = sorted(rows, key=lambda name: -statistics.fmean([row["avg"] for row in rows[name]] or [-1]))
    for name in order:
        found = rows[name]
        columns = {key: [row[key] for row in found if key in row] for key in ("reward", "avg", "pass8", "distinct")}
        entropy, error = [row["entropy"] for row in found], [row["error"] for row in found if "error" in row]
        cells = [
            f"`{name}`" + ("" if PRESETS[name].assumed == "" else " *"),
            *(cell(column) for column in columns.values()),
            cell(entropy),
            cell(error, 0, 100) if error else "–",
            cell([row["seconds"] for row in found], 2),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(out: Path, presets: list[str], refused: dict[str, str], seeds: list[int], learned: str) -> str:
    """Return the whole page."""
    rows, broken = {}, []
    for preset in presets:
        found = [figures(out / f"{preset}-{seed}") for seed in seeds if (out / f"{preset}-{seed}/done.json").exists()]
        broken += [preset] if {} in found else []
        rows[preset] = [row for row in found if row]
    starts = [row["start"] for found in rows.values() for row in found]
    waiting = "\n".join(f"- `{name}`: {why}" for name, why in refused.items())
    return f"""# Objectives league

{WHAT.format(steps=STEPS, seeds=len(seeds), last=LAST)}

`make bench-objectives`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} shared cores without a GPU; CPU seconds per
step include both evaluations. Initial entropy {statistics.fmean(starts):.3f} nats. "error" is how far entropy was
outside its target band, where the objective has one. Objectives marked * are experimental (something was assumed).

{table({name: found for name, found in rows.items() if found})}

{"Did not finish: " + ", ".join(broken) if broken else "Every run finished."}

## What was learned

{learned.strip()}

## Not run

{waiting or "Every preset was run."}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("/tmp/isentrope-league"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)))
    parser.add_argument("--write", type=Path, default=ROOT / "docs/objectives-league.md")
    options = parser.parse_args()
    refused, presets = {}, []
    for preset in options.presets:
        try:
            config(preset, 0)
            presets.append(preset)
        except ConfigError as error:
            refused[preset] = str(error).split("objective.parts: ")[-1].partition("; the trainer")[0]
    train_all([(preset, seed) for seed in options.seeds for preset in presets], options.out, options.jobs)
    learned = options.write.read_text() if options.write.exists() else ""
    learned = learned.partition("## What was learned\n")[2].partition("## Not run")[0]
    options.write.write_text(report(options.out, presets, refused, options.seeds, learned), "utf-8")


if __name__ == "__main__":
    main()
