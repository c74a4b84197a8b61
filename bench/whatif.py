"""A recorded step of 512 completions of 4,096 tokens under every objective: `python bench/whatif.py [--threads 2]`.

The file is made up (no model of that size runs here) but has every column of a real one. Times are of the worker's own
functions in this process: reading, one objective with its token columns written, and the table over all presets.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _shared import machine, quantile, table

from trainer.config import RunConfig
from trainer.objectives import PRESETS, ObjectiveConfig, Step
from trainer.recorder import METADATA, RECORDED, SCHEMA, describe
from trainer.whatif import Recording, effect, packed, read, row

GROUP = 16  # completions of one prompt


def fabricate(path: Path, completions: int, tokens: int) -> None:
    """Write a rollout file of random distributions over three tokens: all its moments are those of a true softmax."""
    dice = np.random.default_rng(0)
    p = dice.dirichlet([2.0, 0.3, 0.1], completions * tokens)
    p = np.maximum(p, 1e-9)
    p /= p.sum(1, keepdims=True)
    drawn = p[np.arange(len(p)), (dice.random(len(p))[:, None] > p.cumsum(1)).sum(1).clip(0, 2)]
    logp = np.log(p)
    entropy = -(p * logp).sum(1)
    reward = (dice.random(completions) < 0.4).astype(np.float32)
    flat = {
        "token_ids": dice.integers(0, 50_000, len(p)),
        "byte_offsets": np.tile(4 * np.arange(tokens), completions),
        "entropy": entropy,
        "logprob": np.log(drawn),
        "engine_logprob": np.log(drawn),
        "weight": np.repeat(reward - 0.4, tokens),
        "entropy_weight": np.zeros(len(p)),
        "flags": np.zeros(len(p)),
        "sum_p2": (p**2).sum(1),
        "sum_p2_logp": (p**2 * logp).sum(1),
        "entropy_gain": (p**2 * (logp + entropy[:, None]) ** 2).sum(1),
    }
    facts = {
        "group": np.arange(completions) // GROUP, "sample": np.arange(completions) % GROUP, "reward": reward,
        "row_key": [str(at // GROUP) for at in range(completions)], "prompt": ["a prompt"] * completions,
        "completion": [" sum" * tokens] * completions, "reward_parts": ["{}"] * completions, "right": reward > 0.5,
        "answer": [str(at % 5) for at in range(completions)], "advantage": reward - 0.4,
        "finish_reason": ["stop"] * completions, "branch_parent": [None] * completions,
        "branch_token": [None] * completions, "version": [6] * completions, "template": [None] * completions,
        "learns": [True] * completions,
        "segments": [[{"kind": "model", "first": 0, "count": tokens}]] * completions,
    }  # fmt: skip
    schema = SCHEMA
    for name in RECORDED:
        schema = schema.append(pa.field(name, pa.list_(pa.float32())))
    offsets = pa.array(np.arange(0, len(p) + 1, tokens, dtype=np.int32))
    columns = {
        name: pa.ListArray.from_arrays(offsets, pa.array(values.astype(kind(schema, name))))
        for name, values in flat.items()
    }
    step = Step(step=7, total_steps=100, max_completion_tokens=tokens)
    said = {**describe(RunConfig(), step), "prompts": completions // GROUP, "completions": completions}
    written = pa.table({**facts, **columns}, schema=schema.with_metadata({METADATA: json.dumps(said).encode()}))
    path.parent.mkdir(parents=True)
    pq.write_table(written, path, compression="zstd")


def kind(schema: pa.Schema, name: str) -> np.dtype:
    return np.dtype(schema.field(name).type.value_type.to_pandas_dtype())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine(), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rollouts" / "step-00000007.parquet"
        fabricate(path, options.completions, options.tokens)
        measure(path, options.threads)


def measure(path: Path, threads: int) -> None:
    recording, reading = timed(lambda: read(path))
    each = {}
    for name in PRESETS:
        shown, spent = timed(lambda name=name: row(recording, ObjectiveConfig(preset=name), reference=1.0))
        if not shown.refused:
            each[name] = spent
    answer, one = timed(lambda: answered(recording))
    whole = tuple(map(sum, zip(*each.values(), strict=True)))
    slowest = sorted(each, key=each.__getitem__, reverse=True)[:3]
    median = tuple(quantile([spent[at] for spent in each.values()], 0.5) for at in (0, 1))
    rows = [
        ("read the file", *seconds(reading)),
        ("one objective, tokens and figures (clip-cov)", *seconds(one)),
        ("a preset's figures, median", *seconds(median)),
        *((f"slowest: {name}", *seconds(each[name])) for name in slowest),
        (f"the table, {len(each)} objectives", *seconds(whole)),
    ]
    print(table([f"{recording.batch.tokens:,} tokens, {threads} threads", "wall, s", "CPU, s"], rows))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\nFile {path.stat().st_size / 2**20:.0f} MiB, answer {len(answer) / 2**20:.0f} MiB, memory {memory:.1f} GiB."
    )


def answered(recording: Recording) -> bytes:
    """Do what the worker does for one objective."""
    config = ObjectiveConfig(preset="clip-cov")
    done = effect(recording, config)
    return packed(recording, done, row(recording, config, done=done))


def timed(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """Return a result with its wall and CPU seconds; the machine may be shared."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, (time.perf_counter() - wall, time.process_time() - cpu)


def seconds(spent: tuple[float, float]) -> list[str]:
    return [f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in spent]


if __name__ == "__main__":
    main()
