"""SmolLM2-135M on an uploaded table, through the whole app: `python bench/smollm2_run.py [--shots] [--lora]`.

Writes additions as JSONL, uploads them in the browser, says which columns are prompt and answer, launches with
math-verify as the reward, follows the run page to the end, and prints what each step measured. Starts from nothing:
the first run converts the model, unless `--models` names a folder that holds it already.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

from _shared import Stack, browser_page, machine, stack, table

MODEL = "builtin:smollm2-135m-instruct"
SYSTEM = "You are a calculator. Reply with the number only."
SHOTS = "2 + 3 = 5\n14 + 6 = 20\n{prompt}"
SHOWN = {
    "reward": "reward/mean",
    "entropy, nats": "entropy/mean",
    "length": "length/mean",
    "cut off": "length/truncated",
    "invalid": "reward/invalid",
    "sample, s": "time/sample",
    "update, s": "time/update",
    "step, s": "time/step",
}


def additions(path: Path, rows: int) -> None:
    """Write rows {"question", "sum", "result"} of one- and two-digit additions."""
    rng = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for a, b in {(rng.randint(1, 40), rng.randint(1, 9)) for _ in range(rows)}:
            row = {"question": f"What is {a} + {b}?", "sum": f"{a} + {b} =", "result": str(a + b)}
            file.write(json.dumps(row) + "\n")


def upload(page: Any, stack: Stack, table_file: Path, prompt: str) -> None:
    """Upload the table and map its columns; ends on the new-run page with the table chosen."""
    page.goto(stack.url + "/catalog/datasets/")
    page.set_input_files('input[type="file"]', table_file)
    page.fill('[data-upload] input[name="name"]', "Additions")
    page.click("[data-upload] button")
    page.wait_for_url(re.compile(r"/datasets/\d+/"))
    page.select_option("#prompt-column", prompt)
    page.select_option("#answer-column", "result")
    page.click("text=Save columns")
    page.click("text=Launch with this")
    page.wait_for_selector("#run-form")


def launch(page: Any, options: argparse.Namespace) -> str:
    """Fill in the form and launch; return the run's id."""
    page.click(f'label.pick:has(input[name="model.source"][value="{MODEL}"])')
    page.click('label.pick:has(input[name="objective.preset"][value="grpo"])')
    page.select_option('[name="rewards.0.type"]', "math_verify")
    fields = {
        "name": "SmolLM2-135M adds",
        "task.system": "" if options.shots else SYSTEM,
        "task.template": SHOTS if options.shots else "{prompt}",
        "sampling.prompts_per_step": options.prompts,
        "sampling.samples_per_prompt": options.samples,
        "sampling.max_prompt_tokens": 64,
        "sampling.max_completion_tokens": options.tokens,
        "optimiser.steps": options.steps,
        "optimiser.learning_rate": options.rate,
        "optimiser.warmup_steps": 1,
        "evaluation.every_steps": options.steps,
        "evaluation.prompts": 16,
        "evaluation.samples_per_prompt": 4,
        "checkpoint.every_steps": 0,
        "resources.cpu_threads": options.threads,
    }
    for name, value in fields.items():
        page.fill(f'[name="{name}"]', str(value))
    if options.shots:
        page.uncheck('input[type="checkbox"][name="task.chat_template"]')
    if options.lora:
        page.check('input[type="checkbox"][name="model.lora.enabled"]')
    page.wait_for_function(
        "([steps]) => document.querySelector('#resolved-toml')?.textContent.includes(`\\nsteps = ${steps}\\n`)"
        " && document.querySelector('.problems-none')",
        arg=[options.steps],
    )
    print(page.text_content("#resolved-toml").strip(), end="\n\n", flush=True)
    page.click("[data-launch]")
    page.wait_for_url(re.compile(r"/runs/[a-z0-9]{6,}/$"))
    return page.url.rstrip("/").rpartition("/")[2]


def follow(page: Any, minutes: float) -> str:
    """Wait on the run page until the run ends; return its state."""
    page.wait_for_selector(
        ':is([data-state="finished"], [data-state="failed"], [data-state="interrupted"])#run-header',
        timeout=60_000 * minutes,
    )
    return page.get_attribute("#run-header", "data-state")


def report(stack: Stack, run: str) -> None:
    """Print evaluations and steps as tables."""
    measured = stack.events(run, "evaluation")
    names = sorted({name for event in measured for name in event["values"]})
    rows = [[str(event["step"]), *(f"{event['values'].get(name, 0):.3f}" for name in names)] for event in measured]
    print(table(["held out, after step", *names], rows), end="\n\n")
    # A step's saving and evaluating are events of their own.
    steps: dict[int, dict[str, float]] = {}
    for event in stack.events(run, "metrics"):
        steps.setdefault(event["step"], {}).update(event["values"])
    rows = [
        [str(step), *(f"{values.get(name, 0):.3g}" for name in SHOWN.values()), memory(values)]
        for step, values in sorted(steps.items())
        if "reward/mean" in values
    ]
    print(table(["step", *SHOWN, "memory, GiB"], rows))


def memory(values: dict[str, float]) -> str:
    return f"{values.get('memory/peak_bytes', 0) / 2**30:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"steps": 8, "prompts": 4, "samples": 4, "tokens": 24, "rows": 300, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lora", action="store_true", help="Train adapters instead of all weights.")
    parser.add_argument("--shots", action="store_true", help="Two examples in front instead of the chat template.")
    parser.add_argument("--rate", type=float, default=5e-6, help="Learning rate.")
    parser.add_argument("--minutes", type=float, default=30, help="How long to wait for the end.")
    parser.add_argument("--models", type=Path, help="A folder that holds the converted model.")
    parser.add_argument("--picture", type=Path, help="Where to put a picture of the page at the end.")
    options = parser.parse_args()
    print(machine(), end="\n\n")
    with stack() as running, browser_page(running) as page:
        if options.models:
            shutil.copytree(options.models, running.home / "models", dirs_exist_ok=True)
        additions(running.home / "additions.jsonl", options.rows)
        upload(page, running, running.home / "additions.jsonl", "sum" if options.shots else "question")
        run = launch(page, options)
        began = time.monotonic()
        state = follow(page, options.minutes)
        print(f"{state} after {time.monotonic() - began:.0f} s", end="\n\n")
        if options.picture:
            page.screenshot(path=options.picture, full_page=True)
        report(running, run)
        if state != "finished":
            raise SystemExit(running.tails())


if __name__ == "__main__":
    main()
