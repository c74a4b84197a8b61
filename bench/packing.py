"""Ways of running completions through a model, without the head: `python bench/packing.py [--quick]`.

Rectangles in which every row carries its prompt, rectangles that run a prompt once, packed rows. A random decoder of
SmolLM2's width and four layers; padding is the share of computed tokens that are no tokens; repeated prompts count as
tokens, so compare seconds. On a CPU they are seconds of CPU on one thread, which other work disturbs least.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "vs_trl"))

import torch
from _shared import machine, table
from cases import Case, rollouts
from transformers import LlamaConfig, LlamaModel

from trainer.forward import Forward, choose
from trainer.packed import PackedRow
from trainer.rectangles import Trajectory, pack, shared_states, whole_states

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
BUDGET = 16384 if GPU else 2048
CASES = (
    Case("16 × 192 behind 32", "", prompts=2, samples=8, prompt_tokens=32, completion_tokens=192),
    Case("64 × 48 behind 64", "", prompts=8, samples=8, prompt_tokens=64, completion_tokens=48),
    Case("16 × 128 behind 512", "", prompts=2, samples=8, prompt_tokens=512, completion_tokens=128),
    Case("8 × 1,024 behind 64", "", prompts=1, samples=8, prompt_tokens=64, completion_tokens=1024),
)


def model() -> Any:
    """Return a random causal language model whose head is not used."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=576, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).to(DEVICE, torch.bfloat16 if GPU else torch.float32).eval()


def ways(lm: Any) -> dict[str, Forward]:
    """Return the ways under short names."""
    best = choose(lm, DEVICE, dtype="bfloat16" if GPU else "float32")
    return {
        "whole": Forward("rectangles", "", partial(pack, shared=False), whole_states),
        "shared": Forward("rectangles, prompts shared", "", partial(pack, shared=True), shared_states),
        "packed": best,
    }


def padding(way: str, batches: list[list[Trajectory]]) -> float:
    """Return the share of computed tokens that are padding, before the last tokens are left out."""
    real = computed = 0
    for rows in batches:
        prompts = {row.prompt for row in rows}
        tokens = sum(len(row.completion) for row in rows)
        if way == "whole":
            real += sum(map(len, rows))
            computed += len(rows) * max(map(len, rows))
        else:
            real += tokens + sum(map(len, prompts))
            widths = len(rows) * max(len(row.completion) for row in rows) + len(prompts) * max(map(len, prompts))
            computed += widths if way == "shared" else len(PackedRow.of(rows)) + len(rows)
    return 1 - real / computed


def seconds(decoder: LlamaModel, batches: list[list[Trajectory]], states: Callable[..., Any], *, learn: bool) -> float:
    """Time all micro-batches, with gradients or without."""
    clock = time.perf_counter if GPU else time.process_time
    decoder.zero_grad()
    began = clock()
    with torch.set_grad_enabled(learn):
        for rows in batches:
            hidden = states(decoder, rows, DEVICE)
            if learn:
                hidden.float().sum().backward()
    if GPU:
        torch.cuda.synchronize()
    return clock() - began


def compare(lm: Any, found: dict[str, Forward], case: Case, fill: float, rounds: int) -> list[str]:
    """Return a line of the table; the ways take turns."""
    made = rollouts(case, fill, 1024)
    prompts = [tuple(prompt) for prompt in made["prompts"] for _ in range(case.samples)]
    rows = [Trajectory(*pair) for pair in zip(prompts, map(tuple, made["completions"]), strict=True)]
    batches = {
        name: [[rows[i] for i in group] for group in way.pack(rows, range(len(rows)), BUDGET)]
        for name, way in found.items()
    }
    times: dict[tuple[str, bool], list[float]] = {}
    for _ in range(rounds):
        for learn in (False, True):
            for name, way in found.items():
                took = seconds(lm.base_model, batches[name], way.states, learn=learn)
                times.setdefault((name, learn), []).append(took)
    cells = [case.name, f"{fill:.0%}", *(f"{padding(name, batches[name]):.1%}" for name in found)]
    for learn in (False, True):
        best = median(times["packed", learn])
        cells += [f"{best:.2f} s", *(f"{median(times[name, learn]) / best:.2f}×" for name in ("whole", "shared"))]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape, one fill, one round")
    parser.add_argument("--fills", type=float, nargs="+", default=[0.37, 0.6, 1.0], metavar="SHARE")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    cases, fills, rounds = (CASES[:1], [0.37], 1) if given.quick else (CASES, given.fills, given.rounds)
    torch.set_num_threads(1)
    print(machine())
    lm = model()
    found = ways(lm)
    print(f"{found['packed'].name}; micro-batches of at most {BUDGET:,} tokens\n")
    head = ["completions", "fill", "padding: whole", "shared", "packed"]
    head += [f"{work}: {name}" for work in ("scoring", "learning") for name in ("packed", "whole", "shared")]
    compare(lm, found, CASES[0], 0.37, 1)  # warm-up
    lines = []
    for case in cases:
        for fill in fills:
            lines.append(compare(lm, found, case, fill, rounds))
            print(*lines[-1], sep=" | ", file=sys.stderr, flush=True)
    print(table(head, lines))


if __name__ == "__main__":
    main()
