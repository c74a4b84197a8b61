"""Reading a run's numbers and rollouts for the browser: series with their attempts, bundles with their columns."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from django.db.models import F
from django.db.models.fields.json import KeyTextTransform, KeyTransform

from webapp.runs.models import Run

EVALUATION = "evaluation/"
MAX_NAMES = 200
MAX_BUNDLE_TOKENS = 2_000_000  # about 50 MB of columns
COLUMNS = {
    "token_ids": pa.uint32(),
    "byte_offsets": pa.uint32(),
    "entropy": pa.float16(),
    "logprob": pa.float32(),
    "engine_logprob": pa.float32(),
    "weight": pa.float16(),
    "entropy_weight": pa.float16(),
    "flags": pa.uint8(),
    "entropy_low": pa.float16(),
    "entropy_high": pa.float16(),
}
DTYPES = {pa.uint32(): "u32", pa.float32(): "f32", pa.float16(): "f16", pa.uint8(): "u8"}
BOUNDS = ("entropy_low", "entropy_high")  # sent where `entropy` is no more than their middle
FACTS = (
    "group", "sample", "prompt", "completion", "reward", "right", "advantage", "finish_reason", "row_key",
    "branch_parent", "branch_token", "segments", "learns", "version", "template",
)  # fmt: skip


# --- Series ---------------------------------------------------------------------------------------------------------


@dataclass
class Segment:
    """The points of one metric in one attempt with one fate; times are Unix seconds."""

    attempt: int
    superseded: bool
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def row(self) -> list[Any]:
        return [self.attempt, self.superseded, self.steps, self.values, [round(time, 1) for time in self.times]]


def superseded_after(run: Run) -> dict[int, float]:
    """Return {attempt: step}: points of the attempt behind that step were replaced by a later attempt."""
    starts = run.events.filter(type="started").order_by("attempt").values_list("attempt", "data__resume_step")
    cuts: dict[int, float] = {}
    for attempt, resume_step in starts:
        for earlier in cuts:
            cuts[earlier] = min(cuts[earlier], resume_step or 0)
        cuts[attempt] = inf
    return cuts


def series(
    run: Run, names: Sequence[str], *, points: int, first: int | None = None, last: int | None = None
) -> dict[str, Any]:
    """Return {series: {name: [[attempt, superseded, steps, values, times], …]}, decimated, shown, total}.

    `points` is the most wanted for each metric; above it every bucket of steps keeps its lowest and highest point.
    """
    cuts = superseded_after(run)
    found: dict[str, list[list[Any]]] = {}
    shown = total = 0
    for name, segments in _segments(run, names[:MAX_NAMES], cuts, first, last).items():
        total += sum(len(segment.steps) for segment in segments)
        thinned = decimate(segments, points)
        shown += sum(len(segment.steps) for segment in thinned)
        found[name] = [segment.row() for segment in thinned]
    return {"series": found, "decimated": shown < total, "shown": shown, "total": total}


def _segments(
    run: Run, names: Sequence[str], cuts: dict[int, float], first: int | None, last: int | None
) -> dict[str, list[Segment]]:
    found: dict[str, dict[tuple[int, bool], Segment]] = {name: {} for name in names}
    for kind in ("metrics", "evaluation"):
        wanted = [name for name in names if name.startswith(EVALUATION) == (kind == "evaluation")]
        for attempt, step, time, *values in _rows(run, kind, wanted, first, last) if wanted else ():
            key = (attempt, step > cuts.get(attempt, inf))
            for name, text in zip(wanted, values, strict=True):
                if text is None or not isfinite(value := float(text)):
                    continue
                segment = found[name].setdefault(key, Segment(*key))
                segment.steps.append(step)
                segment.values.append(value)
                segment.times.append(time.timestamp())
    return {name: [segments[key] for key in sorted(segments)] for name, segments in found.items()}


def _rows(run: Run, kind: str, names: Sequence[str], first: int | None, last: int | None) -> Iterable[tuple[Any, ...]]:
    """Return (attempt, step, time, value of each name as text or None), oldest first; PostgreSQL reads the JSON."""
    events = run.events.filter(type=kind)
    if first is not None:
        events = events.filter(step__gte=first)
    if last is not None:
        events = events.filter(step__lte=last)
    values = {
        f"value_{at}": KeyTextTransform(name.removeprefix(EVALUATION), KeyTransform("values", "data"))
        for at, name in enumerate(names)
    }
    return events.order_by("seq").annotate(**values).values_list(F("attempt"), F("step"), F("time"), *values).iterator()


def decimate(segments: list[Segment], points: int) -> list[Segment]:
    """Keep at most about `points` points: of each bucket of steps the lowest and the highest, so that peaks survive."""
    total = sum(len(segment.steps) for segment in segments)
    if total <= points or total == 0:
        return segments
    low = min(segment.steps[0] for segment in segments)
    high = max(segment.steps[-1] for segment in segments)
    width = (high - low + 1) / max(1, points // 2 - len(segments))
    return [_thin(segment, low, width) for segment in segments]


def _thin(segment: Segment, low: int, width: float) -> Segment:
    buckets: dict[int, list[int]] = defaultdict(list)
    for at, step in enumerate(segment.steps):
        buckets[int((step - low) / width)].append(at)
    # The first and last point stay, so that a segment ends where it ended.
    kept = {0, len(segment.steps) - 1}
    for places in buckets.values():
        kept.add(min(places, key=segment.values.__getitem__))
        kept.add(max(places, key=segment.values.__getitem__))
    order = sorted(kept)
    return Segment(
        segment.attempt,
        segment.superseded,
        [segment.steps[at] for at in order],
        [segment.values[at] for at in order],
        [segment.times[at] for at in order],
    )


# --- Rollouts -------------------------------------------------------------------------------------------------------


def rollout_index(run: Run) -> list[dict[str, Any]]:
    """Return what was recorded, one entry a step, the newest recording of each; `version` changes when it is redone."""
    cuts = superseded_after(run)
    found: dict[int, dict[str, Any]] = {}
    for event in run.events.filter(type="rollouts").order_by("seq").iterator():
        found[event.step] = {
            "step": event.step,
            "attempt": event.attempt,
            "completions": event.data["completions"],
            "tokens": event.data["tokens"],
            "bytes": event.data["bytes"],
            "version": event.seq,
            "superseded": event.step > cuts.get(event.attempt, inf),
        }
    return [found[step] for step in sorted(found)]


def rollout_bundle(path: Path, step: int) -> bytes:
    """Return a rollout file as the bundle of docs/architecture.md.

    Raises FileNotFoundError, and ValueError for a broken file.

    Past MAX_BUNDLE_TOKENS whole completions are left out and the header's `left_out` counts them.
    """
    rollouts: list[dict[str, Any]] = []
    parts: dict[str, list[bytes]] = {}
    tokens = left_out = 0
    try:
        with pq.ParquetFile(path) as file:
            estimator = _estimator(file.schema_arrow.metadata or {})
            parts = {name: [] for name in COLUMNS if estimator == "bounds" or name not in BOUNDS}
            for batch in file.iter_batches(batch_size=64):
                facts, lengths = _facts(batch), _lengths(batch)
                fitting = _fitting(lengths, MAX_BUNDLE_TOKENS - tokens)
                left_out += batch.num_rows - fitting
                batch = batch.slice(0, fitting)
                for fact, length in zip(facts[:fitting], lengths, strict=False):
                    rollouts.append({"index": len(rollouts), **fact, "first": tokens, "tokens": length})
                    tokens += length
                for name in parts:
                    parts[name].append(_column(batch, name, sum(lengths[:fitting])))
    except pa.ArrowException as error:
        raise ValueError(f"the rollout file of step {step} cannot be read: {error}") from error
    header = {"step": step, "rollouts": rollouts, "left_out": left_out, "entropy_estimator": estimator}
    return _packed(header, {name: b"".join(chunks) for name, chunks in parts.items()})


def _estimator(metadata: dict[bytes, bytes]) -> str:
    """Return how the file's entropies were taken: "exact" over the full vocabulary, or "bounds"."""
    said = json.loads(metadata.get(b"isentrope", b"{}"))
    return "bounds" if said.get("entropy_estimator") == "bounds" else "exact"


def _facts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    names = [name for name in (*FACTS, "reward_parts") if name in batch.schema.names]
    rows = batch.select(names).to_pylist()
    for row in rows:
        row["reward_parts"] = json.loads(row.get("reward_parts") or "{}")
        for name in ("reward", "advantage"):
            if row.get(name) is not None and not isfinite(row[name]):
                row[name] = None
    return rows


def _lengths(batch: pa.RecordBatch) -> list[int]:
    return [length or 0 for length in pc.list_value_length(batch.column("token_ids")).to_pylist()]


def _fitting(lengths: list[int], budget: int) -> int:
    for count, length in enumerate(lengths):
        budget -= length
        if budget < 0:
            return count
    return len(lengths)


def _column(batch: pa.RecordBatch, name: str, tokens: int) -> bytes:
    """Return the little-endian values of all rows of a list column; b"" where it does not cover every token."""
    if name not in batch.schema.names:
        return b""
    values = pc.list_flatten(batch.column(name))
    if len(values) != tokens or values.null_count:
        return b""
    kind = COLUMNS[name]
    if values.type != kind:
        values = values.cast(kind)
    width = kind.bit_width // 8
    data = values.buffers()[1]
    return data.slice(values.offset * width, tokens * width).to_pybytes() if tokens else b""


def _packed(header: dict[str, Any], columns: dict[str, bytes]) -> bytes:
    """Lay header and columns out; a column that does not cover every token is left out of both."""
    tokens = sum(rollout["tokens"] for rollout in header["rollouts"])
    specs, body, at = {}, [], 0
    for name, data in columns.items():
        kind = COLUMNS[name]
        if len(data) != tokens * kind.bit_width // 8:
            continue
        specs[name] = {"dtype": DTYPES[kind], "offset": at, "length": tokens}
        padded = data + bytes(-len(data) % 8)
        body.append(padded)
        at += len(padded)
    text = json.dumps({**header, "columns": specs}, ensure_ascii=False, separators=(",", ":")).encode()
    return b"".join([struct.pack("<I", len(text)), text, bytes(-(4 + len(text)) % 8), *body])
