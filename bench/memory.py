"""Predicted against measured peak memory: `python bench/memory.py [--only PART ...] [--repeat N]`.

Each case is a fresh process that really trains (`python -m trainer run`, two or three steps). Measured is the most
resident memory the process ever had, as the kernel counts it; predicted is what the new-run page says beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _shared import ROOT, machine, table

from trainer import models
from trainer.config import RunConfig, load, to_toml
from trainer.estimate import estimate
from trainer.events import RunFolder

TINY, SMOLLM2 = "builtin:countdown-tiny", "builtin:smollm2-135m-instruct"
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """One run; `model` is a source, or a vocabulary for a random Qwen2 of 4 layers and 256 units."""

    name: str
    model: str | int
    settings: dict[str, dict[str, Any]]

    def config(self, folder: Path) -> RunConfig:
        source = str(random_model(folder, self.model)) if isinstance(self.model, int) else self.model
        return load(_merged(BASE, {"model": {"source": source}}, self.settings))


BASE: dict[str, Any] = {
    "objective": {"preset": "entropy-bonus"},  # has a gradient even where every completion is wrong
    "sampling": {"prompts_per_step": 4, "samples_per_prompt": 4, "max_prompt_tokens": 16, "max_completion_tokens": 32},
    "optimiser": {"steps": 2},
    "evaluation": {"every_steps": 0},
    "checkpoint": {"every_steps": 0},
}
CHECKPOINTED = {"model": {"gradient_checkpointing": True}}
ADAPTERS = {"model": {"lora": {"enabled": True}}}
MANY = {"sampling": {"samples_per_prompt": 16, "max_completion_tokens": 64}}
SMALL = {"optimiser": {"tokens_per_microbatch": 512}}
CHAT = {"sampling": {"max_prompt_tokens": 48}}


def _merged(*parts: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            old = found.get(name)
            found[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


STEP = {"sampling": {"prompts_per_step": 32, "samples_per_prompt": 16}}  # the demo's
CASES = [
    Case("tiny", TINY, STEP),
    Case("tiny, GRPO", TINY, _merged(STEP, {"objective": {"preset": "grpo"}})),
    Case("tiny, LoRA", TINY, _merged(STEP, ADAPTERS)),
    Case("32k", 32768, {}),
    Case("32k, many tokens", 32768, MANY),
    Case("32k, many tokens, micro-batch of 512", 32768, _merged(MANY, SMALL)),
    Case("32k, many tokens, checkpointing", 32768, _merged(MANY, CHECKPOINTED)),
    Case("152k", 151936, {}),
    Case("152k, LoRA", 151936, ADAPTERS),
    Case("SmolLM2", SMOLLM2, CHAT),
    Case("SmolLM2, with a reference", SMOLLM2, _merged(CHAT, {"objective": {"preset": "one-shot-rlvr"}})),
    Case("SmolLM2, checkpointing", SMOLLM2, _merged(CHAT, CHECKPOINTED)),
    Case("SmolLM2, LoRA", SMOLLM2, _merged(CHAT, ADAPTERS)),
    Case("SmolLM2, bfloat16", SMOLLM2, _merged(CHAT, {"model": {"dtype": "bfloat16"}})),
    Case("SmolLM2, micro-batch of 128", SMOLLM2, _merged(CHAT, {"optimiser": {"tokens_per_microbatch": 128}})),
]

BUILD = """
import sys, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
path, vocabulary = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
Qwen2ForCausalLM(Qwen2Config(
    vocab_size=vocabulary, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=1, eos_token_id=1,
)).save_pretrained(path)
signs = "0123456789+-*/()= ,:abcdefghijklmnopqrstuvwxyz"
known = {sign: index for index, sign in enumerate(["<pad>", "<eos>", "<unk>", *signs])}
backend = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
).save_pretrained(path)
"""


def random_model(folder: Path, vocabulary: int) -> Path:
    """Return a Qwen2 with random weights, made where it is missing, in a process of its own: this one stays small."""
    path = folder / f"qwen2-{vocabulary}"
    if not path.is_dir():
        subprocess.run([sys.executable, "-c", BUILD, str(path), str(vocabulary)], check=True, capture_output=True)
    return path


def measured(config: RunConfig, folder: Path) -> tuple[int, dict[str, float]]:
    """Train in a fresh process; return its peak resident memory, bytes, and the last metrics."""
    file, out = folder / "run.toml", folder / "run"
    file.write_text(to_toml(config))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "trainer", "run", str(file), "--out", str(out)]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit((folder / "log").read_text()[-3000:])
    lines = (json.loads(line) for line in RunFolder(out).events.read_text().splitlines())
    values: dict[str, float] = {}
    for event in lines:
        values |= event["values"] if event["type"] == "metrics" else {}
    return usage.ru_maxrss * 1024, values


def row(case: Case, models_folder: Path) -> list[str]:
    """Run a case and return its line of the table, MiB."""
    config = case.config(models_folder)
    plan = estimate(config, models.inspect(config.model.source, None), None)
    with tempfile.TemporaryDirectory(prefix="isentrope-memory-") as folder:
        peak, values = measured(config, Path(folder))
    predicted = plan.memory.peak_bytes if plan.memory else 0
    memory = {name: value for name, value in values.items() if name.startswith("memory/")}
    known = ", ".join(f"{name.partition('/')[2]} {value / MIB:.0f}" for name, value in memory.items())
    return [case.name, f"{predicted / MIB:.0f}", f"{peak / MIB:.0f}", f"{predicted / peak:.2f}", known]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of cases; all where none is given")
    parser.add_argument("--models", type=Path, help="keep the random models in this folder")
    options = parser.parse_args()
    print(machine(), end="\n\n", flush=True)
    chosen = [case for case in CASES if not options.only or any(part in case.name for part in options.only)]
    with tempfile.TemporaryDirectory(prefix="isentrope-models-") as folder:
        rows = []
        for case in chosen:
            rows.append(row(case, options.models or Path(folder)))
            print("{}: predicted {}, measured {} MiB, ratio {} ({})".format(*rows[-1]), flush=True)
    print("\n" + table(["run", "predicted, MiB", "measured, MiB", "ratio"], [found[:4] for found in rows]))


if __name__ == "__main__":
    main()
