"""What the catalogue keeps of an uploaded table: the trainer's summary, histograms of lengths, and what may be what.

Run as `python -m webapp.catalog.tables FILE` it answers with JSON, in a process of its own with limits: the file is
hostile, and a parser that dies or swells must not take the web server along. Imports no Django.
"""

from __future__ import annotations

import json
import math
import re
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.dataset_summary import inspect
from trainer.datasets import cell_text, read
from trainer.errors import ConfigError

MEMORY = 3 << 30  # bytes of address space; Arrow maps generously
CPU_SECONDS = 120
SAMPLE_ROWS = 50_000  # rows behind histograms and guesses
SAMPLE_CELLS = 200
BINS = 24
PROMPTS = ("prompt", "question", "problem", "input", "instruction", "query", "text")
ANSWERS = ("answer", "solution", "target", "label", "output", "response", "expected", "ground_truth", "final_answer")
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?([eE][-+]?\d+)?")
MATHS = re.compile(r"\\(boxed|frac|sqrt|pi|cdot|text)|\$|####|\^")


@dataclass
class Sampled:
    """The first cells of a column."""

    lengths: list[int] = field(default_factory=list)
    numeric: int = 0
    cells: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.lengths.append(len(text))
        self.numeric += bool(NUMBER.fullmatch(text.strip()[:64]))
        if len(self.cells) < SAMPLE_CELLS:
            self.cells.append(text[:500])


def table(path: Path) -> dict[str, Any]:
    """Return what the catalogue keeps; raise ConfigError where the file cannot be a dataset."""
    summary = inspect(path).model_dump()
    names = [column["name"] for column in summary["columns"]]
    sampled = sample(path)
    prompt, answer = guess(names)
    return {
        **summary,
        "histograms": {name: histogram(column.lengths) for name, column in sampled.items()},
        "checks": {name: check_for(column) for name, column in sampled.items()},
        "prompt_column": prompt,
        "answer_column": answer,
    }


def sample(path: Path) -> dict[str, Sampled]:
    columns: dict[str, Sampled] = {}
    for row in read(path, limit=SAMPLE_ROWS):
        for name, value in row.items():
            if text := cell_text(value):
                columns.setdefault(name, Sampled()).add(text)
    return columns


def guess(names: Sequence[str]) -> tuple[str, str]:
    """Return the columns that look like prompt and answer, "" where none does; of two columns one is each."""
    lower = {name.lower(): name for name in names}
    prompt = next((lower[name] for name in PROMPTS if name in lower), "")
    answer = next((lower[name] for name in ANSWERS if name in lower and lower[name] != prompt), "")
    if len(names) == 2:
        prompt = prompt or next(name for name in names if name != answer)
        answer = answer or next(name for name in names if name != prompt)
    return prompt, answer


def check_for(column: Sampled) -> str:
    """Return what kind of check fits a column of answers: numeric, math, exact, or none that is clear."""
    if column.numeric == len(column.lengths):
        return "numeric"
    if sum(bool(MATHS.search(cell)) for cell in column.cells) * 2 > len(column.cells):
        return "math"
    return "exact" if max(column.lengths) <= 200 else ""


def histogram(lengths: Sequence[int]) -> dict[str, Any]:
    """Return equal bins of lengths from 0, `width` characters each."""
    top = max(lengths)
    width = max(1, math.ceil((top + 1) / BINS))
    counts = [0] * math.ceil((top + 1) / width)
    for length in lengths:
        counts[length // width] += 1
    return {"width": width, "counts": counts}


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def main(path: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer: dict[str, Any] = {"table": table(Path(path))}
    except ConfigError as error:
        answer = {"problem": sentence(str(error).replace(Path(path).name, "the file"))}
    except MemoryError:
        answer = {"problem": "The file needs too much memory to read; upload a smaller part of it."}
    json.dump(answer, sys.stdout)  # ASCII: lone surrogates survive as escapes


if __name__ == "__main__":
    main(sys.argv[1])
