"""Datasets as files: JSONL, CSV, TSV and Parquet, read row by row with limits and looked at before use. No torch.

The files are hostile: the format is told by content and not by name, lines, rows and cells are bounded, and nothing in
them is executed. Nested cells are shown as JSON.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from trainer.errors import ConfigError

FIELD = "task.path"
MAX_LINE = 1 << 20  # bytes
MAX_BYTES = 16 << 30
MAX_ROWS = 5_000_000
MAX_COLUMNS = 200
MAX_ROW_GROUP = 4 << 30  # bytes of a Parquet row group once unpacked

Format = Literal["jsonl", "csv", "tsv", "parquet"]


def sniff(path: Path) -> Format:
    """Return the format by the file's first bytes; raise ConfigError for what is none of the four."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", FIELD)
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path.name} is larger than {MAX_BYTES >> 30} GiB; use a part of it", FIELD)
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if not head.strip():
        raise ConfigError(f"{path.name} is empty; a data set needs at least one row", FIELD)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"PK", b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ")):
        raise ConfigError(f"{path.name} is compressed; unpack it first", FIELD)
    if b"\0" in head:
        raise ConfigError(f"{path.name} is neither text nor Parquet; use JSONL, CSV or Parquet in UTF-8", FIELD)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        raise ConfigError(f"{path.name} is one JSON array; write one JSON object a line (JSONL)", FIELD)
    if text.startswith(b"{"):
        return "jsonl"
    first = text.partition(b"\n")[0]
    return "tsv" if first.count(b"\t") > first.count(b",") else "csv"


def read(path: Path, *, limit: int = MAX_ROWS, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield at most `limit` rows as {column: value}; `columns` spares Parquet the others.

    Raises ConfigError naming the broken line.
    """
    kind = sniff(path)
    if kind == "parquet":
        rows = _parquet(path, columns)
    else:
        rows = _jsonl(path) if kind == "jsonl" else _delimited(path, "\t" if kind == "tsv" else ",")
    yield from itertools.islice(rows, limit)


def columns_of(path: Path) -> list[str]:
    """Return the names of the columns, of JSONL those of the first hundred rows."""
    if sniff(path) == "parquet":
        with _open_parquet(path) as file:
            return list(file.schema_arrow.names)
    names: dict[str, None] = {}
    for row in read(path, limit=100):
        names.update(dict.fromkeys(row))
    return list(names)


def cell_text(value: Any) -> str:
    """Return a cell as text: strings as they are, None as nothing, everything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def is_messages(value: Any) -> bool:
    """Return whether a cell is a conversation: a list of {role, content} with text in both."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in value
        )
    )


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line) decoded, each bounded before it is read whole."""
    for number in itertools.count(1):
        line = file.readline(MAX_LINE + 1)
        if not line:
            return
        if len(line) > MAX_LINE:
            raise ConfigError(f"{name}: line {number} is longer than {MAX_LINE >> 20} MiB; shorten or split it", FIELD)
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}: line {number} is not UTF-8; save the file as UTF-8", FIELD) from error


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in _lines(file, path.name):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise ConfigError(f"{path.name}: line {number} is not JSON ({reason}); correct it", FIELD) from error
            if not isinstance(row, dict):
                raise ConfigError(f"{path.name}: line {number} is no JSON object; write one object a line", FIELD)
            yield row


def _delimited(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_LINE)
    with path.open("rb") as file:
        reader = csv.reader((line for _, line in _lines(file, path.name)), delimiter=delimiter, strict=True)
        names: list[str] = []
        try:
            for cells in reader:
                if not names:
                    names = _header(path, cells)
                elif cells and len(cells) != len(names):
                    message = f"{path.name}: line {reader.line_num} has {len(cells)} cells for {len(names)} columns"
                    raise ConfigError(f"{message}; quote cells that hold the delimiter", FIELD)
                elif cells:
                    yield dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise ConfigError(f"{path.name}: line {reader.line_num} is no valid CSV ({error})", FIELD) from error


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"{path.name}: the first line must name every column once", FIELD)
    return names


def _open_parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, thrift_string_size_limit=1 << 26, thrift_container_size_limit=1 << 20)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(
            f"{path.name} is a broken Parquet file ({_first_line(error)}); copy it again", FIELD
        ) from error
    groups = (file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups))
    if any(size > MAX_ROW_GROUP for size in groups):
        raise ConfigError(
            f"{path.name} has row groups above {MAX_ROW_GROUP >> 30} GiB; write it in smaller ones", FIELD
        )
    return file


def _parquet(path: Path, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    import pyarrow

    with _open_parquet(path) as file:
        known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        try:
            for batch in file.iter_batches(batch_size=256, columns=known):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ConfigError(f"{path.name} cannot be read ({_first_line(error)}); copy it again", FIELD) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
