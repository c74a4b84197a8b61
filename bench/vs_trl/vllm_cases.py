"""Generation with vLLM on both sides: what is asked for, the columns, and the table of what came."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rounds import OPTIMISER, Side

ROOM = 64  # tokens of the longest prompt
HEAD = (
    "", "tokens/s", "CPU s", "ours is", "vLLM: tokens/s", "CPU s", "ours is", "pass, CPU s", "sync, s", "CPU s",
    "log-probs apart: at first", "weights moved",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Prompts of equal length, and completions of each without an end."""

    model: str
    prompts: int
    samples: int
    tokens: int
    prompt: Callable[[int], str]


def _sum(index: int) -> str:
    return f"What is {11 + index} + {52 + index}? Explain every step on the way to the answer, and name it at the end."


def _puzzle(index: int) -> str:
    return f"{1234 + index}={17 + index % 80}:"


ASKED = {
    "tiny": Asked("builtin:countdown-tiny-llama", 32, 16, 16, _puzzle),
    "tiny-long": Asked("builtin:countdown-tiny-llama", 16, 8, 48, _puzzle),
    "smollm2": Asked("builtin:smollm2-135m-instruct", 4, 8, 48, _sum),
    "smollm2-long": Asked("builtin:smollm2-135m-instruct", 2, 8, 256, _sum),
}


def job_of(asked: Asked, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what both sides are asked to do; our side holds one prompt more out."""
    *prompts, held_out = map(asked.prompt, range(asked.prompts + 1))
    return {
        "model": str(model), "dtype": options.dtype, "threads": options.threads, "warmup": options.warmup,
        "steps": options.steps, "prompts": prompts, "held_out": held_out, "samples": asked.samples,
        "longest": asked.tokens, "room": ROOM + asked.tokens, "optimiser": OPTIMISER, "gpus": options.gpus,
        "trl": {"per_device": 8, "memory_share": 0.3, "reload": not options.gpus, "vllm": told(options)},
    }  # fmt: skip


def told(options: argparse.Namespace) -> dict[str, Any]:
    """Return what vLLM is told beyond TRL's settings: the model's dtype, on a CPU a cache as large as ours."""
    return {"dtype": options.dtype} | ({} if options.gpus else {"kv_cache_memory_bytes": 1 << 30})


def columns(options: argparse.Namespace) -> dict[str, Side]:
    """Return the columns by short name; on a CPU vLLM compiles nothing in ours."""
    ours, trl = Path(sys.executable), options.trl_python
    eager = {"trl": {"vllm": {**told(options), "enforce_eager": not options.gpus}}}
    known = {
        "plain": Side("TRL as it comes", trl, "side_trl_vllm.py", {"trl": {"reload": False, "vllm": {}}}),
        "trl": Side(f"TRL, {options.dtype}", trl, "side_trl_vllm.py", eager),
        "compiled": Side(f"TRL, {options.dtype}, compiled", trl, "side_trl_vllm.py"),
        "ours": Side("ours", ours, "side_ours_vllm.py"),
    }
    return {name: known[name] for name in options.generation_columns}


def column(side: Side) -> dict[str, Any]:
    """Return one column's figures."""
    if side.refused:
        return {"title": side.title, "refused": side.refused}
    last = side.found[-1]
    return {
        "title": side.title, "rounds": [_round(found) for found in side.found], "prompt_tokens": last["prompt_tokens"],
        "mismatch": max(found["mismatch"] for found in side.found),
        "mismatch_moved": max(found["mismatch_moved"] for found in side.found),
        "peak": side.peak(), "versions": last["versions"], "all": side.found,
    }  # fmt: skip


def _round(found: dict[str, Any]) -> dict[str, float]:
    """Return the medians over one process's steps."""
    parts = {
        f"{name}_{clock}": median(part.get(name, 0.0) for part in found[f"{clock}_parts"])
        for name in ("sync", "generate", "pass")
        for clock in ("wall", "cpu")
    }
    whole = {"phase_wall": median(found["seconds"]), "phase_cpu": median(found["cpu"]), "tokens": found["tokens"][0]}
    return whole | parts


def markdown(found: dict[str, Any]) -> str:
    """Return one case's table."""
    lines = [
        f"**{found['generation']}**: {found['size']}\n", "| " + " | ".join(HEAD) + " |",
        "|---|" + "---:|" * (len(HEAD) - 1),
    ]  # fmt: skip
    ours = found["columns"].get("ours", {}).get("rounds")
    for one in found["columns"].values():
        if "refused" in one:
            said = one["refused"].replace("|", "/")[:160]
            lines.append(f"| {one['title']} | does not run: {said} |" + " |" * (len(HEAD) - 2))
        else:
            lines.append(
                f"| {one['title']} | " + " | ".join(_cells(one, None if one["rounds"] is ours else ours)) + " |"
            )
    return "\n".join(lines)


def _cells(one: dict[str, Any], ours: list[dict[str, float]] | None) -> list[str]:
    rounds = one["rounds"]

    def middle(name: str) -> float:
        return median(each[name] for each in rounds)

    def ratio(name: str) -> str:
        wall, cpu = (
            median(theirs[name + clock] / own[name + clock] for theirs, own in zip(rounds, ours or [], strict=False))
            for clock in ("_wall", "_cpu")
        )
        return f"{wall:.2f}× ({cpu:.2f}× CPU)"

    tokens = rounds[0]["tokens"]
    return [
        f"{tokens / middle('phase_wall'):.0f}", f"{middle('phase_cpu'):.2f}", ratio("phase") if ours else "",
        f"{tokens / middle('generate_wall'):.0f}", f"{middle('generate_cpu'):.2f}", ratio("generate") if ours else "",
        f"{middle('pass_cpu'):.2f}", f"{middle('sync_wall'):.2f}", f"{middle('sync_cpu'):.2f}",
        f"{one['mismatch']:.0e}", f"{one['mismatch_moved']:.0e}",
    ]  # fmt: skip
