"""What a data set holds, for a person who is about to train on it: columns, first rows, lengths, gaps, repetitions."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainer.datasets import FIELD, MAX_COLUMNS, MAX_ROWS, Format, cell_text, is_messages, read, sniff
from trainer.errors import ConfigError

PREVIEW_ROWS = 20
PREVIEW_CHARACTERS = 500
MAX_REMEMBERED = 2_000_000  # distinct cells over all columns; beyond it repetitions are no longer counted


class LengthSummary(BaseModel):
    """Lengths of the filled cells in characters."""

    min: int
    p50: int
    p95: int
    max: int


class ColumnSummary(BaseModel):
    """One column; `type` is text, integer, number, boolean, messages, list, object, mixed or empty.

    `nulls` counts missing and null cells, `blank` empty or white ones, `duplicates` filled cells that repeat an
    earlier one (None where the file is too large to tell).
    """

    name: str
    type: str
    nulls: int
    blank: int
    duplicates: int | None
    lengths: LengthSummary | None


class DatasetSummary(BaseModel):
    """A whole file; `preview` holds its first rows as text, cut off."""

    format: Format
    rows: int
    bytes: int
    columns: list[ColumnSummary]
    preview: list[dict[str, str | None]]
    warnings: list[str] = []


@dataclass
class _Column:
    types: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    blank: int = 0
    duplicates: int = 0
    seen: set[bytes] = field(default_factory=set)

    def add(self, value: Any, *, remember: bool) -> None:
        """Take in one cell that is not null."""
        text = cell_text(value)
        self.types[_type_of(value)] += 1
        if not text.strip():
            self.blank += 1
            return
        self.lengths[len(text)] += 1
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if digest in self.seen:
            self.duplicates += 1
        elif remember:
            self.seen.add(digest)

    @property
    def type(self) -> str:
        if set(self.types) == {"integer", "number"}:
            return "number"
        return next(iter(self.types)) if len(self.types) == 1 else "mixed" if self.types else "empty"


def inspect(path: Path) -> DatasetSummary:
    """Return what the file holds, reading all of it once; raise ConfigError where it cannot be a data set."""
    columns: dict[str, _Column] = {}
    preview: list[dict[str, str | None]] = []
    rows = remembered = 0
    for row in read(path, limit=MAX_ROWS + 1):
        rows += 1
        if len(preview) < PREVIEW_ROWS:
            preview.append({name: None if value is None else _cut(value) for name, value in row.items()})
        for name, value in row.items():
            column = columns.setdefault(name, _Column())
            before = len(column.seen)
            if value is not None:
                column.add(value, remember=remembered < MAX_REMEMBERED)
            remembered += len(column.seen) - before
        _check_size(path, rows, len(columns))
    if not rows:
        raise ConfigError(f"{path.name} has no rows; a data set needs at least one", FIELD)
    complete = remembered < MAX_REMEMBERED
    summaries = [_summary(name, column, rows, complete=complete) for name, column in columns.items()]
    return DatasetSummary(
        format=sniff(path),
        rows=rows,
        bytes=path.stat().st_size,
        columns=summaries,
        preview=preview,
        warnings=[warning for summary in summaries for warning in _warnings(summary, rows)],
    )


def _check_size(path: Path, rows: int, columns: int) -> None:
    if rows > MAX_ROWS:
        raise ConfigError(f"{path.name} has more than {MAX_ROWS:,} rows; use a part of it", FIELD)
    if columns > MAX_COLUMNS:
        raise ConfigError(f"{path.name} has more than {MAX_COLUMNS} columns; keep the ones you need", FIELD)


def _summary(name: str, column: _Column, rows: int, *, complete: bool) -> ColumnSummary:
    return ColumnSummary(
        name=name,
        type=column.type,
        nulls=rows - column.types.total(),
        blank=column.blank,
        duplicates=column.duplicates if complete else None,
        lengths=_lengths(column.lengths) if column.lengths else None,
    )


def _lengths(counts: Counter[int]) -> LengthSummary:
    ordered, total = sorted(counts), counts.total()

    def quantile(share: float) -> int:
        """The smallest length that at least this share of the cells does not exceed."""
        seen = 0
        for length in ordered:
            seen += counts[length]
            if seen >= share * total:
                return length
        return ordered[-1]

    return LengthSummary(min=ordered[0], p50=quantile(0.5), p95=quantile(0.95), max=ordered[-1])


def _warnings(column: ColumnSummary, rows: int) -> list[str]:
    found = []
    if column.nulls or column.blank:
        found.append(f"{column.name}: {column.nulls + column.blank} of {rows} rows are empty here")
    if column.duplicates and column.type in ("text", "messages"):
        found.append(f"{column.name}: {column.duplicates} of {rows} rows repeat an earlier one")
    if column.type == "mixed":
        found.append(f"{column.name}: the rows hold values of different types")
    return found


def _cut(value: Any) -> str:
    text = cell_text(value)
    return text if len(text) <= PREVIEW_CHARACTERS else text[:PREVIEW_CHARACTERS] + "…"


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if isinstance(value, int) else "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "messages" if is_messages(value) else "list"
    return "object" if isinstance(value, dict) else "text"
