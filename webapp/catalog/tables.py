"""What an uploaded table holds: format, columns, first rows, lengths, and which columns look like prompt and answer.

Run as `python -m webapp.catalog.tables FILE` it answers with JSON, in a process of its own with limits: the file is
hostile, and a parser that dies or swells must not take the web server along. Imports no Django.
"""

from __future__ import annotations

import csv
import json
import math
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_ROWS = 5_000_000
MAX_COLUMNS = 200
MAX_LINE = 8 << 20  # bytes
MEMORY = 3 << 30  # bytes of address space; Arrow maps generously
CPU_SECONDS = 120
PREVIEW_ROWS = 20
PREVIEW_CHARACTERS = 2000
SAMPLE_LENGTHS = 200_000  # rows whose lengths are kept; the histogram says so by its count
BINS = 24
PROMPTS = ("prompt", "question", "problem", "input", "instruction", "query", "text")
ANSWERS = (
    "answer",
    "solution",
    "target",
    "label",
    "output",
    "response",
    "expected",
    "ground_truth",
    "final_answer",
    "completion",
)


class Unusable(Exception):
    """The file cannot be a dataset; the message is the sentence to show."""


def sniff(path: Path) -> str:
    """Return jsonl, csv or parquet by the file's first bytes, never by its name."""
    with path.open("rb") as file:
        head = file.read(65536)
    if not head.strip():
        raise Unusable("The file is empty.")
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:2] in (b"PK", b"\x1f\x8b") or head[:3] == b"BZh" or head[:4] == b"\x28\xb5\x2f\xfd":
        raise Unusable("The file is compressed; unpack it and upload the JSONL, CSV or Parquet file inside.")
    if b"\x00" in head:
        raise Unusable("The file is binary; upload JSONL, CSV or Parquet.")
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first == b"[":
        raise Unusable("The file is one JSON array; write one JSON object a line (JSONL).")
    return "jsonl" if first == b"{" else "csv"


def read(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Yield the rows as dicts; raise Unusable naming the line that is broken."""
    yield from {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}[kind](path)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise Unusable(f"Line {number} is longer than {MAX_LINE >> 20} MiB; split or shorten it.")
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is not UTF-8 text"
                raise Unusable(f"Line {number} is not JSON ({reason}); write one object a line.") from error
            if not isinstance(row, dict):
                raise Unusable(f"Line {number} is no JSON object; write one object a line.")
            yield row


def read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_LINE)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            head = file.read(65536)
            delimiter = max(",\t;|", key=head.partition("\n")[0].count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            names = [name.strip() for name in next(reader)]
            if len(names) < 2 or len(set(names)) < len(names) or not all(names):
                raise Unusable("The first line must name at least two different columns.")
            for values in reader:
                if not values:
                    continue
                if len(values) != len(names):
                    raise Unusable(f"Line {reader.line_num} has {len(values)} cells for {len(names)} columns.")
                yield dict(zip(names, values, strict=True))
        except UnicodeDecodeError as error:
            raise Unusable("The file is not UTF-8 text; save it as UTF-8.") from error
        except csv.Error as error:
            raise Unusable(f"The file is no valid CSV ({error}).") from error


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise Unusable(f"The Parquet file cannot be read ({str(error).splitlines()[0][:200]}).") from error


def as_cell(value: Any) -> str:
    """Return a value as the text a prompt or an answer would be."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, list) else "object" if isinstance(value, dict) else "other"


@dataclass
class Column:
    """What one pass over the rows learns of a column."""

    name: str
    kinds: set[str] = field(default_factory=set)
    filled: int = 0
    lengths: list[int] = field(default_factory=list)
    numeric: int = 0
    sampled: list[str] = field(default_factory=list)

    def add(self, value: Any) -> None:
        text = as_cell(value)
        if text == "":
            return
        self.filled += 1
        self.kinds.add(kind_of(value))
        self.numeric += bool(NUMBER.fullmatch(text.strip()[:64]))
        if len(self.lengths) < SAMPLE_LENGTHS:
            self.lengths.append(len(text))
        if len(self.sampled) < 200:
            self.sampled.append(text[:500])

    @property
    def kind(self) -> str:
        return next(iter(self.kinds)) if len(self.kinds) == 1 else "mixed" if self.kinds else "empty"


NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?([eE][-+]?\d+)?")
MATHS = re.compile(r"\\(boxed|frac|sqrt|pi|cdot|text)|\$|####|\^")


def inspect(path: Path) -> dict[str, Any]:
    """Return everything the catalogue keeps of a table; raise Unusable where it cannot be a dataset."""
    kind = sniff(path)
    columns: dict[str, Column] = {}
    preview: list[dict[str, str]] = []
    count = 0
    for row in read(path, kind):
        count += 1
        if count > MAX_ROWS:
            raise Unusable(f"The file has more than {MAX_ROWS:,} rows; upload a part of it.")
        if len(preview) < PREVIEW_ROWS:
            preview.append({str(name)[:200]: as_cell(value)[:PREVIEW_CHARACTERS] for name, value in row.items()})
        for name, value in row.items():
            column = columns.get(name)
            if column is None:
                if len(columns) >= MAX_COLUMNS:
                    raise Unusable(f"The file has more than {MAX_COLUMNS} columns; keep the ones you need.")
                column = columns[name] = Column(str(name)[:200])
            column.add(value)
    if count == 0:
        raise Unusable("The file has no rows.")
    prompt, answer = guess(columns)
    return {
        "format": kind,
        "rows": count,
        "columns": [{"name": column.name, "kind": column.kind, "filled": column.filled} for column in columns.values()],
        "preview": preview,
        "lengths": {column.name: lengths(column.lengths) for column in columns.values() if column.lengths},
        "prompt_column": prompt,
        "answer_column": answer,
        "rewards": {column.name: reward_for(column) for column in columns.values()},
    }


def guess(columns: dict[str, Column]) -> tuple[str, str]:
    """Return the columns that look like prompt and answer, "" where none does."""
    lower = {name.lower(): name for name in columns}
    prompt = next((lower[name] for name in PROMPTS if name in lower), "")
    answer = next((lower[name] for name in ANSWERS if name in lower and lower[name] != prompt), "")
    rest = [name for name in columns if name not in (prompt, answer)]
    if len(columns) == 2:
        prompt = prompt or next((name for name in rest), "")
        answer = answer or next((name for name in columns if name != prompt), "")
    return prompt, answer


def reward_for(column: Column) -> str:
    """Return the kind of check that fits a column of answers: numeric, math, exact or none."""
    if not column.filled:
        return ""
    if column.numeric == column.filled:
        return "numeric"
    if sum(bool(MATHS.search(text)) for text in column.sampled) * 2 > len(column.sampled):
        return "math"
    return "exact" if max(column.lengths) <= 200 else ""


def lengths(values: list[int]) -> dict[str, Any]:
    """Return quantiles of the lengths in characters and a histogram of equal bins."""
    ordered = sorted(values)
    top = ordered[-1]
    width = max(1, math.ceil((top + 1) / BINS))
    counts = [0] * min(BINS, math.ceil((top + 1) / width))
    for value in ordered:
        counts[value // width] += 1
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return {
        "least": ordered[0],
        "median": at(0.5),
        "p95": at(0.95),
        "most": top,
        "mean": sum(ordered) / len(ordered),
        "width": width,
        "counts": counts,
    }


def main(path: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer: dict[str, Any] = {"table": inspect(Path(path))}
    except Unusable as error:
        answer = {"problem": str(error)}
    except MemoryError:
        answer = {"problem": "The file needs too much memory to read; upload a smaller part of it."}
    json.dump(answer, sys.stdout)  # ASCII: lone surrogates survive as escapes


if __name__ == "__main__":
    main(sys.argv[1])
