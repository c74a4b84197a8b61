"""Rollout files: one parquet file a step, one row a completion, open to pandas, polars and duckdb.

A file says by itself what the step was: its metadata holds the objective, the knobs in force and the sizes of the step,
and its columns every statistic the objective read, so that another objective can be applied to it later
(trainer/whatif). Text is stored as the model wrote it, control characters and all: whoever shows it must escape it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.completion import BOUNDS, Completion
from trainer.config import RunConfig
from trainer.distributed import World
from trainer.events import RunFolder
from trainer.objectives import Objective, Step
from trainer.record_rows import Rows, segments
from trainer.statistics import MOMENTS, STATISTICS
from trainer.stream import Silent, disk_errors
from trainer.text_statistics import COMPLETION_FACTS, TOKEN_TEXT
from trainer.update import Update

# bits of `flags`
FLAG_MASKED, FLAG_INVALID, FLAG_AUXILIARY, FLAG_SAMPLED, FLAG_CONTEXT = 1, 2, 4, 8, 16

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
        pa.field("branch_parent", pa.uint32()),  # row of this file; null: not a fork, or off one that is not here
        pa.field("branch_token", pa.uint32()),  # tokens it shares with the parent; null: not a fork
        pa.field(
            "segments", pa.list_(pa.struct([("kind", pa.string()), ("first", pa.uint32()), ("count", pa.uint32())]))
        ),  # who said what (trainer/record_rows.py)
        pa.field("learns", pa.bool_()),  # false: fills its group, gives no gradient
        pa.field("version", pa.uint32()),  # updates behind the weights it was drawn with
        pa.field("template", pa.string()),  # wording of the prompt; null: there is one
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

    def due(self, step: int) -> bool:
        """Return whether a step is recorded."""
        return step == 1 or step % self.config.recording.every_steps == 0

    def record(
        self, step: int, completions: list[Completion], update: Update, settings: Step, stream: Silent, attempt: int
    ) -> None:
        """Write the file of a step and say so; `settings` is what its objective was given."""
        groups = whole_groups(self.world.gather(Counter(c.group for c in completions)), self.max_samples)
        mine = [completion for completion in completions if completion.group in groups]
        chosen = sorted(
            (c for part in self.world.gather(mine) for c in part), key=lambda c: (c.group, c.auxiliary, c.sample)
        )
        if not self.world.main:
            return
        chosen = chosen[: self.max_samples]
        path = self.folder.rollout_file(step)
        facts = {**describe(self.config, settings), "attempt": attempt, "completions": len(update.layout.length)}
        write(_table(Rows(chosen, update), facts), path)
        stream.emit(
            "rollouts",
            step,
            path=str(path.relative_to(self.folder.path)),
            completions=len(chosen),
            tokens=sum(len(completion.offsets) for completion in chosen),
            bytes=path.stat().st_size,
        )


def whole_groups(sizes: Sequence[Mapping[int, int]], limit: int) -> set[int]:
    """Return the first groups whose completions are at most `limit` together, and the first one whatever its size.

    `sizes` are {group: completions} of each process.
    """
    total = Counter[int]()
    for part in sizes:
        total.update(part)
    found, taken = set[int](), 0
    for group in sorted(total):
        taken += total[group]
        if found and taken > limit:
            break
        found.add(group)
    return found


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


def _table(rows: Rows, facts: dict[str, Any]) -> pa.Table:
    """Return the rows under SCHEMA, then a column for each statistic there is besides."""
    columns, schema = _facts(rows) | _tokens(rows), SCHEMA
    for name, (kind, values) in (_statistics(rows) | _bounds(rows)).items():
        columns[name], schema = values, schema.append(pa.field(name, kind))
    estimator = "bounds" if rows.update.sampled and BOUNDS[0] in columns else "exact"
    text = json.dumps({**facts, "entropy_estimator": estimator})
    return pa.table(columns, schema=schema.with_metadata({METADATA: text.encode()}))


def _statistics(rows: Rows) -> dict[str, tuple[pa.DataType, list[Any]]]:
    """Return {column: (type, a value for each row)} of the statistics that not every file has."""
    update = rows.update
    core = {name: getattr(update.batch, name) for name in ("ref_logprob", "sum_p2", "sum_p2_logp")}
    later = {f"{CURRENT}{name}": value for name, value in update.current.items()}
    tokens = {name: value for name, value in (core | later).items() if value is not None}
    found = {}
    derived = (*TOKEN_TEXT, *COMPLETION_FACTS)  # of the text, which is recorded itself
    extra = {name: value for name, value in update.batch.extra.items() if name not in derived}
    for name, value in (tokens | extra).items():
        if name in tokens or STATISTICS[name].domain == "token":
            found[name] = (pa.list_(pa.float32()), rows.known(value.detach().float()))
        else:
            array = value.detach().float().numpy()
            kind = pa.list_(pa.float32()) if array.ndim > 1 else pa.float32()
            found[name] = (kind, [array[place] for place in rows.places])
    return found


def _bounds(rows: Rows) -> dict[str, tuple[pa.DataType, list[Any]]]:
    """Return the interval in which each token's entropy lies, where sampling gave only that."""
    found = {name: [c.engine_moments.get(name, []) for c in rows.chosen] for name in BOUNDS}
    sizes = [len(c.tokens.completion) for c in rows.chosen]
    whole = all([len(values) for values in column] == sizes for column in found.values())
    return {name: (pa.list_(pa.float32()), column) for name, column in found.items()} if whole and any(sizes) else {}


def _facts(rows: Rows) -> dict[str, list[Any]]:
    """Return the columns that have one value for each completion."""
    chosen, update = rows.chosen, rows.update
    advantage = rows.counting(update.weight if update.batch.advantage is None else update.batch.advantage)
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
        "advantage": [float(part.mean()) if len(part) else 0.0 for part in advantage],
        "finish_reason": [c.finish_reason for c in chosen],
        "branch_parent": [rows.parent(c) for c in chosen],
        "branch_token": [c.fork_at for c in chosen],
        "segments": [segments(c) for c in chosen],
        "learns": [c.learns for c in chosen],
        "version": [c.version for c in chosen],
        "template": [c.template or None for c in chosen],
    }


def _tokens(rows: Rows) -> dict[str, list[Any]]:
    """Return the columns of SCHEMA that have one value for each token."""
    batch, update = rows.update.batch, rows.update
    engine_logprob = rows.known(batch.need("engine_logprob").float(), lambda c: c.engine_logprob)
    return {
        "token_ids": [list(c.tokens.completion) for c in rows.chosen],
        "byte_offsets": [c.offsets for c in rows.chosen],
        "entropy": rows.known(batch.need("old_entropy").float(), lambda c: c.engine_entropy),
        "logprob": rows.known(batch.need("old_logprob").float(), lambda c: c.engine_logprob),
        "engine_logprob": engine_logprob,
        "weight": rows.marked(update.weight.clamp(-65504, 65504).half()),
        "entropy_weight": rows.marked(update.entropy_weight.clamp(-65504, 65504).half()),
        "flags": _flags(rows),
    }


def _flags(rows: Rows) -> list[Any]:
    """Return the bits of every token; those of a completion hold for its context too."""
    batch, update = rows.update.batch, rows.update
    whole = (~batch.need("valid")).byte() * FLAG_INVALID | FLAG_SAMPLED * update.sampled  # [S]
    if batch.auxiliary is not None:
        whole |= batch.auxiliary.byte() * FLAG_AUXILIARY
    flags = batch.per_token(whole) | (update.kept == 0).byte() * FLAG_MASKED
    return rows.marked(flags, lambda row: FLAG_CONTEXT | int(whole[rows.places[row]]))


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
