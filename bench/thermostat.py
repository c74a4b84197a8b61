"""The thermostat beside AEPO, SCOPE-RL, Skywork and Entrocraft: who holds entropy on which course, and at what price.

    python bench/thermostat.py --out /tmp/thermostat --seeds 0 1 2 --jobs 2

Trains what the folder does not hold yet, all of one seed before the next, and prints Markdown
tables; --picture writes the courses as SVG. Every method aims at the same course in nats: multiples of the initial
model's entropy, measured once. Methods that know only a constant target have theirs steered in every step.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.config import RunConfig, load  # noqa: E402  (the path comes first)
from trainer.events import Control, RunFolder  # noqa: E402
from trainer.objectives.schedule import drawn, progress  # noqa: E402
from trainer.stream import Silent  # noqa: E402

Points = list[tuple[float, float]]
STEPS, PROMPTS, SAMPLES, BLOCK = 100, 64, 4, 10
COURSES: dict[str, Points] = {  # (share of the run, multiple of the initial entropy)
    "0.5×": [(0, 0.5)],
    "1×": [(0, 1.0)],
    "1.5×": [(0, 1.5)],
    "2×": [(0, 2.0)],
    "1× to 0.5×": [(0, 1.0), (1, 0.5)],
    "1× to 2×": [(0, 1.0), (1, 2.0)],
    "drawn": [(0, 1.0), (0.25, 1.4), (0.5, 1.0), (0.75, 0.6), (1, 1.0)],
}
THERMOSTATS: dict[str, list[Any]] = {
    "bonus": [{"type": "entropy_bonus"}],
    "polarity": [{"type": "polarity_balance"}],
    "sign": [{"type": "sign_balance"}],
    "temperature": [],
}
METHODS = (
    "thermostat: bonus",
    "Entrocraft",
    "AEPO",
    "Skywork, faster",
    "thermostat: temperature",
    "thermostat: polarity",
    "SCOPE-RL",
    "thermostat: sign",
    "Skywork",
)


def objective(method: str, course: Points, initial: float) -> dict[str, Any]:
    """Return the objective of a method; `course` in nats for those that take one."""
    points: list[Any] = [[x, multiple * initial] for x, multiple in course]
    kind, _, actuator = method.partition(": ")
    if kind == "thermostat":
        part: Any = {"type": "thermostat", "actuator": actuator, "measure": "nats"}
        part |= {"schedule": "drawn", "points": points}
        return {"preset": "grpo", "parts": [*THERMOSTATS[actuator], part]}
    if method == "Entrocraft":  # a band of 5 % of the initial entropy on either side
        part = {"type": "entrocraft", "schedule": "drawn", "points": points, "width": 0.1 * initial}
        return {"preset": "entrocraft", "parts": [part]}
    preset = {"AEPO": "aepo", "SCOPE-RL": "scope-rl"}.get(method, "skywork-adaptive")
    faster: Any = {"type": "skywork", "delta": 0.02, "highest": 1.0}
    return {"preset": preset, "parts": [faster] if method == "Skywork, faster" else []}


def config(chosen: dict[str, Any], seed: int, *, prompts: int = PROMPTS) -> RunConfig:
    return load(
        {
            "seed": seed,
            "objective": chosen,
            "sampling": {"prompts_per_step": prompts, "samples_per_prompt": SAMPLES, "max_completion_tokens": 8},
            "optimiser": {"steps": STEPS},
            "evaluation": {"every_steps": STEPS, "prompts": 64, "samples_per_prompt": 16},
            "checkpoint": {"every_steps": 0},
            "recording": {"every_steps": 10**6, "live_samples": 0, "max_samples": 1},
            "resources": {"cpu_threads": 1},
        }
    )


class Notes(Silent):
    """Keeps the figures of steps and evaluations, and what people would have been told."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []
        self.alerts: list[tuple[int, str]] = []

    def emit(self, kind: str, step: int, **fields: Any) -> None:
        if kind == "metrics" and "loss" in fields["values"]:
            self.steps.append(fields["values"])
        elif kind == "evaluation":
            self.evaluations.append(fields["values"])
        elif kind == "alert":
            self.alerts.append((step, fields["message"]))


@contextlib.contextmanager
def trainer(run: RunConfig, notes: Silent, aim: Callable[[int], float] | None = None) -> Iterator[Any]:
    """Yield a trainer in a folder that is gone afterwards; `aim` gives the target, nats, steered before each step."""
    import torch

    torch.set_num_threads(1)
    from trainer.distributed import World
    from trainer.loop import Trainer

    class Steered(Trainer):
        def _listen(self, step: int) -> Control:
            control = super()._listen(step)
            if aim is not None:
                self.steering.knobs["entropy_target"] = aim(step)
            return control

    with tempfile.TemporaryDirectory() as folder:
        made = Steered(RunFolder(Path(folder)), run, 1, notes, World(cpu=True))
        try:
            yield made
        finally:
            made.close()


def initial_entropy(out: Path) -> float:
    """Return the token-mean entropy of the built-in model on 512 prompts, nats; measured once a folder."""
    file = out / "initial.json"
    if not file.exists():
        with trainer(config({"preset": "grpo"}, 0, prompts=512), Silent()) as made:
            completions = made.collector.collect(made.steering.step(1), 1, {}, {})
            batch, _ = made.updater.scorer.start(completions, 1.0, {})
        file.write_text(json.dumps(float(batch.need("entropy").mean())))
    return json.loads(file.read_text())


def train(method: str, course: str, seed: int, initial: float, out: Path) -> None:
    """Train once, in this process, and leave the run's figures as JSON."""
    began, points, notes = time.monotonic(), COURSES[course], Notes()
    aims = [drawn(points, progress(step, STEPS)) * initial for step in range(STEPS + 1)]
    steered = None if method.startswith(("thermostat", "Entrocraft")) else aims.__getitem__
    with (
        contextlib.redirect_stdout(io.StringIO()),
        trainer(config(objective(method, points, initial), seed), notes, steered) as made,
    ):
        made.run()
    names = ("entropy/mean", "reward/mean", "objective/entropy_variance", "objective/thermostat_saturated")
    found = {
        "method": method,
        "course": course,
        "seed": seed,
        "target": aims[1:],
        **{name: [step[name] for step in notes.steps if name in step] for name in names},
        "evaluations": notes.evaluations,
        "alerts": notes.alerts,
        "seconds": time.monotonic() - began,
    }
    temporary = file_of(out, method, course, seed).with_suffix(".part")
    temporary.write_text(json.dumps(found))
    temporary.rename(file_of(out, method, course, seed))


def file_of(out: Path, method: str, course: str, seed: int) -> Path:
    name = f"{method}-{course}-{seed}".replace(" ", "_").replace(":", "").replace(",", "").replace("×", "x")
    return out / f"{name}.json"


def attempt(cell: tuple[str, str, int], initial: float, out: Path) -> str:
    """Train one cell; return a line about it, an error included."""
    try:
        train(*cell, initial, out)
        return f"{cell} done"
    except Exception:
        return f"{cell} failed\n{traceback.format_exc()}"


# -- figures --------------------------------------------------------------------------------------------------------


def held(run: dict[str, Any], *, block: int = 1) -> float:
    """Return the mean absolute relative error over the last half, per cent, of means over `block` steps."""
    half = len(run["target"]) // 2
    pairs = list(zip(run["entropy/mean"][half:], run["target"][half:], strict=True))
    groups = [pairs[at : at + block] for at in range(0, len(pairs), block)]
    means = [[statistics.fmean(column) for column in zip(*group, strict=True)] for group in groups]
    return 100 * statistics.fmean(abs(entropy - target) / target for entropy, target in means)


def scatter(run: dict[str, Any]) -> float:
    """Return the mean error that a perfectly held entropy would show for the draw of prompts alone, per cent."""
    half = len(run["target"]) // 2
    pairs = zip(run["objective/entropy_variance"][half:], run["target"][half:], strict=True)
    return 100 * statistics.fmean((2 * variance / 3.14159265) ** 0.5 / target for variance, target in pairs)


def mean_of(runs: list[dict[str, Any]], figure: Callable[[dict[str, Any]], float], shown: str = ".1f") -> str:
    values = [figure(run) for run in runs]
    return format(statistics.fmean(values), shown) if values else "–"


def tables(out: Path, initial: float) -> str:
    """Return what the folder holds as Markdown."""
    from bench._shared import table

    runs = [json.loads(file.read_text()) for file in sorted(out.glob("*-*.json"))]
    cells = {(m, c): [r for r in runs if (r["method"], r["course"]) == (m, c)] for m in METHODS for c in COURSES}

    def grid(figure: Callable[[dict[str, Any]], float], shown: str = ".1f") -> str:
        shown_methods = [m for m in METHODS if any(cells[m, c] for c in COURSES)]
        rows = [[m, *(mean_of(cells[m, c], figure, shown) for c in COURSES)] for m in shown_methods]
        return table(["", *COURSES], rows)

    measured = [r for r in runs if r["objective/entropy_variance"]]
    floor = [mean_of([r for r in measured if r["course"] == c], scatter) for c in COURSES]
    seeds = sorted({run["seed"] for run in runs})
    return "\n\n".join(
        [
            f"Initial entropy {initial:.3f} nats; {len(runs)} runs, seeds {seeds}.",
            "Error of single steps, %:",
            grid(held),
            "A perfectly held entropy would show: "
            + ", ".join(map(" ".join, zip(COURSES, floor, strict=True)))
            + " %.",
            f"Error of means over {BLOCK} steps, %:",
            grid(lambda run: held(run, block=BLOCK)),
            "Reward, mean of the last half:",
            grid(lambda run: statistics.fmean(run["reward/mean"][len(run["target"]) // 2 :]), ".2f"),
            "Held-out pass@16 at the end:",
            grid(lambda run: run["evaluations"][-1]["pass@16"], ".2f"),
            "Held-out avg@16 at the end:",
            grid(lambda run: run["evaluations"][-1]["avg@16"], ".2f"),
        ]
    )


# -- picture --------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, GAP, TOP = 150, 90, 16, 2.4  # of a panel, pixels; TOP in multiples of the initial entropy


def picture(out: Path, initial: float, seed: int = 0) -> str:
    """Return an SVG of every method (row) on every course (column): entropy over the run against its target."""
    parts = []
    methods = [method for method in METHODS if any(file_of(out, method, course, seed).exists() for course in COURSES)]
    for row, method in enumerate(methods):
        y = 30 + row * (HEIGHT + GAP)
        parts.append(f'<text x="0" y="{y - 4}">{method}</text>')
        for column, course in enumerate(COURSES):
            file = file_of(out, method, course, seed)
            x = column * (WIDTH + 6)
            parts.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" class="frame"/>')
            if row == 0:
                parts.append(f'<text x="{x + WIDTH}" y="12" text-anchor="end">{course}</text>')
            if file.exists():
                run = json.loads(file.read_text())
                parts.append(line(run["target"], initial, x, y, "aim") + line(run["entropy/mean"], initial, x, y, "is"))
    width, height = len(COURSES) * (WIDTH + 6), 30 + len(methods) * (HEIGHT + GAP)
    style = (
        "text{font:11px sans-serif;fill:#333}.frame{fill:#fff;stroke:#bbb}"
        ".aim{fill:none;stroke:#d08a00;stroke-width:1.5}.is{fill:none;stroke:#1f5fbf;stroke-width:1}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><style>{style}</style>'
    return head + f'<rect width="{width}" height="{height}" fill="#fff"/>' + "".join(parts) + "</svg>\n"


def line(values: list[float], initial: float, x: float, y: float, kind: str) -> str:
    places = (
        f"{x + WIDTH * (at + 1) / len(values):.0f},{y + HEIGHT * (1 - min(value / initial, TOP) / TOP):.1f}"
        for at, value in enumerate(values)
    )
    return f'<polyline class="{kind}" points="{" ".join(places)}"/>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "isentrope-thermostat")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--courses", nargs="+", default=tuple(COURSES), choices=tuple(COURSES))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further run after so long")
    parser.add_argument("--picture", type=Path, help="write the courses of seed 0 here")
    parser.add_argument("--only-report", action="store_true")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    options.out.mkdir(parents=True, exist_ok=True)
    initial = initial_entropy(options.out)
    if not options.only_report:
        work(options, initial)
    print(tables(options.out, initial))
    if options.picture:
        options.picture.write_text(picture(options.out, initial))


def work(options: argparse.Namespace, initial: float) -> None:
    """Train every missing cell, `jobs` at a time, until the minutes are over."""
    end = time.monotonic() + 60 * options.minutes
    cells = [(m, c, seed) for seed in options.seeds for m in options.methods for c in options.courses]
    missing = [cell for cell in cells if not file_of(options.out, *cell).exists()]
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        waiting = {pool.submit(attempt, cell, initial, options.out) for cell in missing[: options.jobs]}
        missing = missing[options.jobs :]
        while waiting:
            done = next(as_completed(waiting))
            waiting.remove(done)
            print(done.result(), f"({len(missing)} to go)", file=sys.stderr, flush=True)
            if missing and time.monotonic() < end:
                waiting.add(pool.submit(attempt, missing.pop(0), initial, options.out))


if __name__ == "__main__":
    main()
