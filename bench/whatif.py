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
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _shared import machine, quantile, table

from trainer.config import RunConfig
from trainer.objectives import PRESETS, ObjectiveConfig, Step
from trainer.recorder import METADATA, RECORDED, SCHEMA, describe
from trainer.whatif import effect, packed, read, row
from trainer.whatif import table as rows_of
from trainer.whatif.effect import plain

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
        "branch_token": [None] * completions,
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
    began = time.perf_counter()
    recording = read(path)
    reading = time.perf_counter() - began
    seconds = {}
    for name in PRESETS:
        began = time.perf_counter()
        if not row(recording, ObjectiveConfig(preset=name), reference=1.0).refused:
            seconds[name] = time.perf_counter() - began
    began = time.perf_counter()
    done = effect(recording, ObjectiveConfig(preset="clip-cov"))
    shown = row(recording, ObjectiveConfig(preset="clip-cov"), done=done, reference=float(plain(recording).abs().sum()))
    size = len(packed(recording, done, shown))
    one = time.perf_counter() - began
    began = time.perf_counter()
    count = sum(not one.refused for one in rows_of(recording))
    whole = time.perf_counter() - began
    slowest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:5]
    rows = [
        ("rollout file", f"{path.stat().st_size / 2**20:.0f} MiB"),
        ("read it", f"{reading:.1f} s"),
        ("one objective, tokens and figures (clip-cov)", f"{one:.1f} s"),
        ("its answer", f"{size / 2**20:.1f} MiB"),
        ("a preset's figures, median", f"{quantile(list(seconds.values()), 0.5):.2f} s"),
        *((f"slowest: {name}", f"{seconds[name]:.2f} s") for name in slowest),
        (f"the table, {count} objectives", f"{whole:.0f} s"),
        ("memory, peak", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"),
    ]
    print(table([f"{recording.batch.tokens:,} tokens, {threads} threads", ""], rows))


if __name__ == "__main__":
    main()
