"""Update time and memory while a step's tokens grow 1 to 16 times: `python bench/scaling.py [--quick]`.

A random model goes through the real Updater (scoring pass, objective, pass with gradients, AdamW) on made-up rollouts
of equal shape, ever more of them. Micro-batches have one token budget throughout, so time should grow with the tokens
and memory not at all. On a GPU the model has the shape of Qwen3-0.6B and figures are seconds; on a CPU it is a small
Qwen2 on one thread and figures are seconds of CPU, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "vs_trl"))

import _probe as probe
import torch
from _shared import machine, table
from cases import Case, model_folder, rollouts
from side_ours import completions

from trainer.config import load
from trainer.distributed import World
from trainer.objectives import Objective, Step
from trainer.optimiser import Optimiser
from trainer.policy import Policy
from trainer.surroundings import seed_everything
from trainer.update import Updater

GPU = torch.cuda.is_available()
FACTORS = (1, 2, 4, 8, 16)
FILL = 0.6
# prompts at 1x, and tokens in a micro-batch: one at 1x, sixteen at 16x
CASE = (
    Case("Qwen3-0.6B's shape", "random:151936", prompts=2, samples=16, prompt_tokens=256, completion_tokens=1024)
    if GPU
    else Case("4 layers, width 256, vocabulary 32,768", "random:32768", prompts=2, samples=4, completion_tokens=96)
)
BUDGET = 16384 if GPU else 512
MIB = 1 << 20


def folder_of(case: Case, under: Path) -> Path:
    """Return the model's folder; on a GPU the small model's tokenizer serves a large one."""
    folder = model_folder(case.model, under)
    if GPU:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(
            vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=0, pad_token_id=1,
        )  # fmt: skip
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


class Bench:
    """A policy and what updates it."""

    def __init__(self, folder: Path) -> None:
        world = World(cpu=not GPU)
        config = load({
            "model": {"source": str(folder), "dtype": "bfloat16" if GPU else "float32"},
            "objective": {"preset": "entropy-bonus"}, "optimiser": {"learning_rate": 1e-6, "warmup_steps": 0},
        })  # fmt: skip
        self.policy = Policy(folder, config.model, world.device)
        self.objective = Objective(config.objective)
        optimiser = Optimiser(self.policy.parameters, config.optimiser, self.policy.placement)
        self.updater = Updater(self.policy, None, self.objective, optimiser, world)

    def rollouts(self, factor: int) -> list[Any]:
        case = Case(**{**vars(CASE), "prompts": CASE.prompts * factor})
        self.policy.budget = BUDGET
        return completions(rollouts(case, FILL, self.policy.vocabulary), self.policy)

    def update(self, batch: list[Any]) -> dict[str, float]:
        """Return seconds and the bytes that one update took above what was held before."""
        knobs = {name: knob.value for name, knob in self.objective.knobs().items()}
        now = Step(knobs=knobs, step=1, total_steps=100, seed=0, max_completion_tokens=CASE.completion_tokens)
        times: dict[str, float] = {}
        held = _forget()
        began = time.process_time()
        update = self.updater.update(batch, now, 1, 1.0, times)
        assert not update.problems, update.problems
        if not GPU:
            return {"seconds": time.process_time() - began, "bytes": probe.peak() - held}
        return {"seconds": sum(times.values()), "bytes": torch.cuda.max_memory_allocated() - held}


def _forget() -> int:
    """Start counting the peak anew; return the bytes held now."""
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    probe.trim()
    probe.forget_peak()
    return probe.resident()


def row(factor: int, tokens: int, found: list[dict[str, float]], first: list[float], vocabulary: int) -> list[str]:
    """Return a line of the table; `first` holds seconds and bytes of the smallest step."""
    seconds, held = (median(one[name] for one in found) for name in ("seconds", "bytes"))
    return [
        f"{factor}×", f"{tokens:,}", f"{seconds:.2f}", f"{seconds / first[0]:.2f}", f"{tokens / seconds:,.0f}",
        f"{held / MIB:.0f}", f"{held / first[1]:.2f}", f"{tokens * vocabulary * 4 / MIB:,.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round up to 4 times the tokens")
    quick = parser.parse_args().quick
    factors, rounds = (FACTORS[:3], 1) if quick else (FACTORS, 3)
    torch.set_num_threads(1)
    seed_everything(0)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder_of(CASE, Path(folder)))
        batches = {factor: bench.rollouts(factor) for factor in factors}
        bench.update(batches[1])  # moments of AdamW, compiled kernels
        found: dict[int, list[dict[str, float]]] = {factor: [] for factor in factors}
        for _ in range(rounds):  # sizes take turns
            for factor in factors:
                found[factor].append(bench.update(batches[factor]))
    tokens = {factor: sum(len(c.tokens.completion) for c in batch) for factor, batch in batches.items()}
    first = [median(one[name] for one in found[1]) for name in ("seconds", "bytes")]
    print(f"{CASE.name}; {bench.policy.forward.name}, up to {BUDGET:,} tokens; medians of {rounds}\n")
    head = ["", "tokens", "s" if GPU else "CPU s", "ratio", "tokens/s", "peak MiB", "ratio", "logits would be, MiB"]
    print(table(head, (row(f, tokens[f], found[f], first, bench.policy.vocabulary) for f in factors)))


if __name__ == "__main__":
    main()
