"""Figures of the comparison: columns, differences of gradients, Markdown."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import vllm_cases
from rounds import HERE, Side

HEAD = ("", "s a step", "quartiles", "CPU s", "useful tokens/s", "ours is", "peak MB", "ours takes", "above loaded MB")

STEP_HEAD = (
    "", "s a step", "quartiles", "CPU s", "ours is", "sampling, s", "sampled tokens/s", "rest, s", "mean length",
    "peak MB", "ours takes",
)  # fmt: skip


def column(side: Side, useful: int) -> dict[str, Any]:
    """Return one column's figures; `useful` are the completion tokens of a step."""
    if side.refused:
        return {"title": side.title, "refused": side.refused}
    return {
        "title": side.title,
        "seconds": side.middle("seconds"), "quartiles": side.spread("seconds"), "cpu": side.middle("cpu"),
        "tokens_per_second": useful / side.middle("seconds"), "peak": side.peak(), "grown": side.grown(),
        "loss": side.found[0]["losses"][0], "entropy": side.found[0]["entropy"][0],
        "versions": side.found[0]["versions"], "all_seconds": side.values("seconds"), "all_cpu": side.values("cpu"),
    }  # fmt: skip


def whole_step(side: Side, completions: int) -> dict[str, Any]:
    """Return one column of the end-to-end comparison."""
    if side.refused:
        return {"title": side.title, "refused": side.refused}
    tokens = side.values("tokens")
    rates = [count / seconds for count, seconds in zip(tokens, side.values("sampled"), strict=True)]
    rest = [whole - part for whole, part in zip(side.values("seconds"), side.values("sampled"), strict=True)]
    return {
        "title": side.title,
        "seconds": side.middle("seconds"), "quartiles": side.spread("seconds"), "cpu": side.middle("cpu"),
        "sampling": side.middle("sampled"), "sampling_rate": median(rates), "rest": median(rest),
        "length": sum(tokens) / len(tokens) / completions, "peak": side.peak(), "grown": side.grown(),
        "versions": side.found[0]["versions"], "all_seconds": side.values("seconds"), "all_cpu": side.values("cpu"),
        "split": [split for found in side.found for split in found.get("split", [])],
    }  # fmt: skip


def differences(ours: Path, theirs: Path) -> dict[str, float]:
    """Return how far two files of gradients are apart, relative to the second."""
    import torch

    mine, other = torch.load(ours, weights_only=True), torch.load(theirs, weights_only=True)
    assert mine.keys() == other.keys(), "the two sides name other parameters"
    flat = {name: (mine[name].double(), other[name].double()) for name in mine}
    square = sum(float((a - b).square().sum()) for a, b in flat.values())
    whole = sum(float(b.square().sum()) for _, b in flat.values())
    return {
        "gradient_l2": (square / whole) ** 0.5,
        "gradient_largest": max(float((a - b).abs().max() / b.abs().max()) for a, b in flat.values() if b.any()),
    }


def surroundings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on besides the code's meaning."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "commit": commit.stdout.strip(), "cores": os.cpu_count(),
        "load": os.getloadavg(), "python": platform.python_version(), "machine": platform.machine(),
        "threads": options.threads, "rounds": options.rounds, "steps": options.steps, "allocator": "glibc",
    }  # fmt: skip


def markdown(whole: dict[str, Any]) -> str:
    """Return all of it as text and tables."""
    columns = [column for found in whole["results"] for column in found["columns"].values() if "versions" in column]
    versions = {name: value for column in columns for name, value in column["versions"].items()}
    named = ", ".join(f"{name} {value}" for name, value in versions.items() if name != "python")
    first = (
        f"{whole['date']} UTC, commit {whole['commit']}, {whole['cores']} cores, load at the end "
        f"{whole['load'][0]:.1f}, {whole['threads']} threads, {whole['rounds']} processes of {whole['steps']} timed "
        f"steps each, Python {whole['python']}, {named}"
    )
    return "\n\n".join([first, *(_table(found) for found in whole["results"])])


def _table(found: dict[str, Any]) -> str:
    if "generation" in found:
        return vllm_cases.markdown(found)
    return _steps(found) if "end_to_end" in found else _replay(found)


def _steps(found: dict[str, Any]) -> str:
    lines = [
        f"**SmolLM2-135M with sampling, {found['end_to_end']}**\n",
        "| " + " | ".join(STEP_HEAD) + " |",
        "|---|" + "---:|" * (len(STEP_HEAD) - 1),
    ]
    ours = found["columns"].get("ours")
    for column in found["columns"].values():
        if "refused" in column:
            lines.append(
                f"| {column['title']} | does not run: {column['refused'][:120]} |" + " |" * (len(STEP_HEAD) - 2)
            )
            continue
        low, high = column["quartiles"]
        cells = [
            f"{column['seconds']:.2f}", f"{low:.2f}–{high:.2f}", f"{column['cpu']:.2f}",
            f"{column['seconds'] / ours['seconds']:.2f}× ({column['cpu'] / ours['cpu']:.2f}× CPU)" if ours else "",
            f"{column['sampling']:.2f}", f"{column['sampling_rate']:.0f}", f"{column['rest']:.2f}",
            f"{column['length']:.1f}", f"{column['peak'] / 1e6:.0f}",
            f"{ours['peak'] / column['peak']:.2f}" if ours else "",
        ]  # fmt: skip
        lines.append(f"| {column['title']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _replay(found: dict[str, Any]) -> str:
    lines = [
        f"**{found['case']}, {found['fill']:.0%} fill** ({found['tokens']} useful tokens a step)\n",
        "| " + " | ".join(HEAD) + " |",
        "|---|" + "---:|" * (len(HEAD) - 1),
    ]
    ours = found["columns"].get("ours")
    for column in found["columns"].values():
        lines.append("| " + " | ".join(_row(column, ours)) + " |")
    if found["equality"]:
        lines.append(
            "\nThe losses differ by {loss:.1e} (a token's loss is about 1), the gradients by {gradient_l2:.1e} of "
            "the norm; the largest single difference is {gradient_largest:.1e} of its tensor's largest entry.".format(
                **found["equality"]
            )
        )
    return "\n".join(lines)


def _row(column: dict[str, Any], ours: dict[str, Any] | None) -> list[str]:
    if "refused" in column:
        return [column["title"], "does not run: " + column["refused"].replace("|", "/")[:120], *[""] * 7]
    low, high = column["quartiles"]
    faster = f"{column['seconds'] / ours['seconds']:.2f}× ({column['cpu'] / ours['cpu']:.2f}× CPU)" if ours else ""
    smaller = f"{ours['peak'] / column['peak']:.2f}" if ours else ""
    return [
        column["title"], f"{column['seconds']:.2f}", f"{low:.2f}–{high:.2f}", f"{column['cpu']:.2f}",
        f"{column['tokens_per_second']:.0f}", faster, f"{column['peak'] / 1e6:.0f}", smaller,
        f"{column['grown'] / 1e6:.0f}",
    ]  # fmt: skip
