"""Reading and inspecting files that people upload: formats by content, limits, and a sentence for each fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer import datasets
from trainer.dataset_summary import inspect
from trainer.errors import ConfigError

ROWS: list[dict[str, Any]] = [
    {"prompt": "1+1", "answer": "2"},
    {"prompt": 'a "quoted", b', "answer": "x\ny"},
    {"prompt": "1+1", "answer": ""},
]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(path: Path, rows: list[Any]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(params=["jsonl", "csv", "tsv", "parquet"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same rows in each format, under a name that lies about it."""
    path = tmp_path / "data.bin"
    if request.param == "jsonl":
        return jsonl(path, ROWS)
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    mark = "," if request.param == "csv" else "\t"
    return write(path, f'\ufeffprompt{mark}answer\r\n1+1{mark}2\r\n"a ""quoted"", b"{mark}"x\ny"\r\n1+1{mark}\r\n')


def test_every_format_gives_the_same_rows_and_figures(file: Path) -> None:
    assert list(datasets.read(file)) == ROWS
    assert datasets.columns_of(file) == ["prompt", "answer"]
    found = inspect(file)
    assert found.rows == 3
    assert found.preview == ROWS
    prompt, answer = found.columns
    assert (prompt.type, prompt.nulls, prompt.blank, prompt.duplicates) == ("text", 0, 0, 1)
    assert prompt.lengths is not None
    assert (prompt.lengths.min, prompt.lengths.p50, prompt.lengths.p95, prompt.lengths.max) == (3, 3, 13, 13)
    assert (answer.blank, answer.duplicates) == (1, 0)
    assert found.warnings == ["prompt: 1 of 3 rows repeat an earlier one", "answer: 1 of 3 rows are empty here"]


def test_nested_cells_are_shown_as_json_and_conversations_recognised(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}]
    rows = [{"talk": talk, "meta": {"é": 1}, "n": 1, "m": 1}, {"talk": talk, "meta": {}, "n": 2.5, "m": "x"}, {"n": 3}]
    found = inspect(jsonl(tmp_path / "a", rows))
    assert [column.type for column in found.columns] == ["messages", "object", "number", "mixed"]
    assert [column.nulls for column in found.columns] == [1, 1, 0, 1]
    assert found.preview[0]["meta"] == '{"é": 1}'


def test_long_cells_are_cut_in_the_preview_only(tmp_path: Path) -> None:
    found = inspect(jsonl(tmp_path / "a", [{"text": "x" * 10_000}] * 30))
    assert len(found.preview) == 20
    assert found.preview[0]["text"] == "x" * 500 + "…"
    assert found.columns[0].lengths is not None
    assert found.columns[0].lengths.max == 10_000


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ('[{"a": 1}]', "one JSON array"),
        ('{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ('{"a": 1}\n[1]\n', "line 2 is no JSON object"),
        ('{"a": 1}\n' + "[" * 100_000 + "\n", "line 2 is not JSON"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2 is not UTF-8"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}\n', "line 1 is longer than 1 MiB"),
        ("a,b\n1,2\n1,2,3\n", "line 3 has 3 cells for 2 columns"),
        ("a,a\n1,2\n", "must name every column once"),
        ('a,b\n1,"2\n', "no valid CSV"),
        (b"PK\x03\x04" + bytes(100), "is compressed"),
        (b"\x1f\x8b" + bytes(100), "is compressed"),
        (b"\x7fELF\x00\x00", "neither text nor Parquet"),
        (b"PAR1" + b"x" * 100 + b"PAR1", "broken Parquet file"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_each_fault_has_its_sentence(tmp_path: Path, content: str | bytes, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        inspect(write(tmp_path / "data", content))
    assert caught.value.field == "task.path"


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no rows"):
        inspect(write(tmp_path / "a", "prompt,answer\n"))
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "b")
    with pytest.raises(ConfigError, match="has no rows"):
        inspect(tmp_path / "b")


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    pq.write_table(pa.table({"prompt": [str(number) for number in range(10_000)]}), path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[100:400] = bytes(300)
    for content in (whole[:-20], whole[: len(whole) // 2], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"copy it again"):
            inspect(path)


def test_too_many_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 200 columns"):
        inspect(jsonl(tmp_path / "a", [{str(number): 1} for number in range(201)]))


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a", ROWS)
    code = "import sys; from pathlib import Path; from trainer.dataset_summary import inspect as look;"
    code += f"look(Path({str(path)!r}))"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True)
