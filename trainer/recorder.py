"""Rollout files: one parquet file a step, one row a completion, open to pandas, polars and duckdb.

Text is stored as the model wrote it, control characters and all: whoever shows it must escape it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from trainer.collect import Completion
from trainer.distributed import World
from trainer.events import RunFolder
from trainer.stream import Silent, disk_errors
from trainer.update import Update

FLAG_MASKED, FLAG_INVALID, FLAG_AUXILIARY = 1, 2, 4  # bits of `flags`

SCHEMA = pa.schema(
    [
        pa.field("group", pa.uint32()),
        pa.field("sample", pa.uint32()),
        pa.field("row_key", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("completion", pa.string()),
        pa.field("reward", pa.float32()),  # null: invalid
        pa.field("reward_parts", pa.string()),  # JSON
        pa.field("right", pa.bool_()),  # what pass@k counts; null: invalid
        pa.field("advantage", pa.float32()),  # mean over the completion's tokens
        pa.field("finish_reason", pa.string()),
        pa.field("branch_parent", pa.uint32()),
        pa.field("branch_token", pa.uint32()),
        pa.field("token_ids", pa.list_(pa.uint32())),
        pa.field("byte_offsets", pa.list_(pa.uint32())),  # where each token's text begins in the UTF-8 completion
        pa.field("entropy", pa.list_(pa.float16())),  # nats
        pa.field("logprob", pa.list_(pa.float32())),
        pa.field("engine_logprob", pa.list_(pa.float32())),
        pa.field("weight", pa.list_(pa.float16())),
        pa.field("entropy_weight", pa.list_(pa.float16())),
        pa.field("flags", pa.list_(pa.uint8())),
    ]
)


class Recorder:
    """Writes rollout files: the first whole groups of a step, up to a number of samples."""

    def __init__(self, folder: RunFolder, samples_per_prompt: int, max_samples: int, world: World) -> None:
        self.folder, self.world = folder, world
        self.groups, self.max_samples = -(-max_samples // samples_per_prompt), max_samples

    def record(self, step: int, completions: list[Completion], update: Update, stream: Silent) -> None:
        """Write the file of a step and say so."""
        mine = [completion for completion in completions if completion.group < self.groups]
        chosen = sorted(
            (c for part in self.world.gather(mine) for c in part), key=lambda c: (c.group, c.auxiliary, c.sample)
        )
        if not self.world.main:
            return
        chosen = chosen[: self.max_samples]
        path = self.folder.rollout_file(step)
        table = pa.table(_columns(chosen, update), schema=SCHEMA)
        write(table, path)
        stream.emit(
            "rollouts",
            step,
            path=str(path.relative_to(self.folder.path)),
            completions=len(chosen),
            tokens=sum(len(completion.offsets) for completion in chosen),
            bytes=path.stat().st_size,
        )


def write(table: pa.Table, path: Path) -> None:
    """Write a parquet file under a temporary name and rename it when whole; raises ResourceError on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with disk_errors(path):
            pq.write_table(table, temporary, compression="zstd")
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _columns(chosen: list[Completion], update: Update) -> dict[str, list[Any]]:
    batch, layout = update.batch, update.layout
    ends = layout.length.cumsum(0)
    spans = {
        index: slice(end - length, end)
        for index, end, length in zip(layout.index.tolist(), ends.tolist(), layout.length.tolist(), strict=True)
    }
    where = [spans[completion.index] for completion in chosen]

    def lists(values: Tensor) -> list[Any]:
        array = values.numpy()
        return [array[span] for span in where]

    advantage = update.weight if batch.advantage is None else batch.advantage
    return {
        "group": [c.group for c in chosen],
        "sample": [c.sample for c in chosen],
        "row_key": [c.row.key for c in chosen],
        "prompt": [_text(c.row.prompt) for c in chosen],
        "completion": [c.text for c in chosen],
        "reward": [c.scored.reward for c in chosen],
        "reward_parts": [json.dumps(c.scored.parts) for c in chosen],
        "right": [c.right for c in chosen],
        "advantage": [float(part.mean()) if len(part) else 0.0 for part in lists(advantage)],
        "finish_reason": [c.finish_reason for c in chosen],
        "branch_parent": [None] * len(chosen),
        "branch_token": [None] * len(chosen),
        "token_ids": [list(c.tokens.completion) for c in chosen],
        "byte_offsets": [c.offsets for c in chosen],
        "entropy": lists(batch.need("old_entropy").half()),
        "logprob": lists(batch.need("old_logprob").float()),
        "engine_logprob": lists(batch.need("engine_logprob").float()),
        "weight": lists(update.weight.clamp(-65504, 65504).half()),
        "entropy_weight": lists(update.entropy_weight.clamp(-65504, 65504).half()),
        "flags": lists(_flags(update)),
    }


def _flags(update: Update) -> Tensor:
    batch = update.batch
    flags = (~batch.per_token(batch.need("valid"))).byte() * FLAG_INVALID
    if batch.mask is not None:
        flags |= (batch.mask == 0).byte() * FLAG_MASKED
    if batch.auxiliary is not None:
        flags |= batch.per_token(batch.auxiliary).byte() * FLAG_AUXILIARY
    return flags


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
