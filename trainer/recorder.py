"""Rollout files: one parquet file a step, one row a completion, open to pandas, polars and duckdb.

A file says by itself what the step was: its metadata holds the objective, the knobs in force and the sizes of the step,
and its columns every statistic the objective read, so that another objective can be applied to it later
(trainer/whatif). Text is stored as the model wrote it, control characters and all: whoever shows it must escape it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from trainer.completion import Completion
from trainer.config import RunConfig
from trainer.distributed import World
from trainer.events import RunFolder
from trainer.objectives import Objective, Step
from trainer.statistics import MOMENTS, STATISTICS
from trainer.stream import Silent, disk_errors
from trainer.text_statistics import COMPLETION_FACTS, TOKEN_TEXT
from trainer.update import Update

FLAG_MASKED, FLAG_INVALID, FLAG_AUXILIARY, FLAG_SAMPLED = 1, 2, 4, 8  # bits of `flags`

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
        pa.field("answer", pa.string()),  # in canonical form; null: none was found
        pa.field("advantage", pa.float32()),  # mean over the completion's tokens
        pa.field("finish_reason", pa.string()),
        pa.field("branch_parent", pa.uint32()),
        pa.field("branch_token", pa.uint32()),
        pa.field("token_ids", pa.list_(pa.uint32())),
        pa.field("byte_offsets", pa.list_(pa.uint32())),  # where each token's text begins in the UTF-8 completion
        pa.field("entropy", pa.list_(pa.float32())),  # nats
        pa.field("logprob", pa.list_(pa.float32())),
        pa.field("engine_logprob", pa.list_(pa.float32())),
        pa.field("weight", pa.list_(pa.float16())),
        pa.field("entropy_weight", pa.list_(pa.float16())),
        pa.field("flags", pa.list_(pa.uint8())),
    ]
)
RECORDED = MOMENTS  # computed for every recorded step, read by the objective or not
CURRENT = "current_"  # prefix of what a later minibatch found, where a step has several
METADATA = b"isentrope"  # key of the JSON that describes the step


class Recorder:
    """Writes rollout files: the first whole groups of a step, up to a number of samples."""

    def __init__(self, folder: RunFolder, config: RunConfig, world: World) -> None:
        self.folder, self.config, self.world = folder, config, world
        self.max_samples = config.recording.max_samples
        self.groups = -(-self.max_samples // config.sampling.samples_per_prompt)

    def due(self, step: int) -> bool:
        """Return whether a step is recorded."""
        return step == 1 or step % self.config.recording.every_steps == 0

    def record(
        self, step: int, completions: list[Completion], update: Update, settings: Step, stream: Silent, attempt: int
    ) -> None:
        """Write the file of a step and say so; `settings` is what its objective was given."""
        mine = [completion for completion in completions if completion.group < self.groups]
        chosen = sorted(
            (c for part in self.world.gather(mine) for c in part), key=lambda c: (c.group, c.auxiliary, c.sample)
        )
        if not self.world.main:
            return
        chosen = chosen[: self.max_samples]
        path = self.folder.rollout_file(step)
        facts = {**describe(self.config, settings), "attempt": attempt, "completions": len(update.layout.length)}
        write(_table(chosen, update, facts), path)
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


def describe(config: RunConfig, settings: Step) -> dict[str, Any]:
    """Return what another objective needs to know of a step besides its tokens; plain JSON."""
    return {
        "step": settings.step,
        "total_steps": settings.total_steps,
        "seed": settings.seed,
        "max_completion_tokens": settings.max_completion_tokens,
        "vocabulary": settings.vocabulary,
        "knobs": settings.knobs,
        "prompts": config.sampling.prompts_per_step,
        "minibatches": config.optimiser.minibatches_per_step,
        "objective": config.objective.model_dump(mode="json"),
        "options": Objective(config.objective).options(settings.knobs),
    }


def _table(chosen: list[Completion], update: Update, facts: dict[str, Any]) -> pa.Table:
    """Return the rows under SCHEMA, then a column for each statistic there is besides."""
    columns, schema = _columns(chosen, update), SCHEMA
    for name, (kind, values) in _statistics(chosen, update).items():
        columns[name], schema = values, schema.append(pa.field(name, kind))
    return pa.table(columns, schema=schema.with_metadata({METADATA: json.dumps(facts).encode()}))


def _statistics(chosen: list[Completion], update: Update) -> dict[str, tuple[pa.DataType, list[Any]]]:
    """Return {column: (type, a value for each row)} of the statistics that not every file has."""
    batch, spans = update.batch, _spans(chosen, update)
    core = {name: getattr(batch, name) for name in ("ref_logprob", "sum_p2", "sum_p2_logp")}
    later = {f"{CURRENT}{name}": value for name, value in update.current.items()}
    tokens = {name: value for name, value in (core | later).items() if value is not None}
    found = {}
    derived = (*TOKEN_TEXT, *COMPLETION_FACTS)  # of the text, which is recorded itself
    extra = {name: value for name, value in batch.extra.items() if name not in derived}
    for name, value in (tokens | extra).items():
        array = value.detach().float().numpy()
        if name in tokens or STATISTICS[name].domain == "token":
            found[name] = (pa.list_(pa.float32()), [array[span] for span in spans])
        else:
            places = [int(torch.searchsorted(update.layout.index, c.index)) for c in chosen]
            kind = pa.list_(pa.float32()) if array.ndim > 1 else pa.float32()
            found[name] = (kind, [array[place] for place in places])
    return found


def _spans(chosen: list[Completion], update: Update) -> list[slice]:
    """Return where each completion's tokens stand in the step."""
    index, length = update.layout.index, update.layout.length
    ends = length.cumsum(0)
    places = [int(torch.searchsorted(index, completion.index)) for completion in chosen]
    return [slice(int(ends[place] - length[place]), int(ends[place])) for place in places]


def _columns(chosen: list[Completion], update: Update) -> dict[str, list[Any]]:
    batch, where = update.batch, _spans(chosen, update)

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
        "answer": [None if c.scored.canonical is None else _text(c.scored.canonical) for c in chosen],
        "advantage": [float(part.mean()) if len(part) else 0.0 for part in lists(advantage)],
        "finish_reason": [c.finish_reason for c in chosen],
        "branch_parent": [None] * len(chosen),
        "branch_token": [None] * len(chosen),
        "token_ids": [list(c.tokens.completion) for c in chosen],
        "byte_offsets": [c.offsets for c in chosen],
        "entropy": lists(batch.need("old_entropy").float()),
        "logprob": lists(batch.need("old_logprob").float()),
        "engine_logprob": lists(batch.need("engine_logprob").float()),
        "weight": lists(update.weight.clamp(-65504, 65504).half()),
        "entropy_weight": lists(update.entropy_weight.clamp(-65504, 65504).half()),
        "flags": lists(_flags(update)),
    }


def _flags(update: Update) -> Tensor:
    batch = update.batch
    flags = (~batch.per_token(batch.need("valid"))).byte() * FLAG_INVALID
    flags |= (update.kept == 0).byte() * FLAG_MASKED
    if batch.auxiliary is not None:
        flags |= batch.per_token(batch.auxiliary).byte() * FLAG_AUXILIARY
    return flags | FLAG_SAMPLED if update.sampled else flags


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
