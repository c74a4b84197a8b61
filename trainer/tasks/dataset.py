"""Problems from a file (JSONL, CSV, TSV, Parquet) or a hub data set: a prompt column, an answer column, a template."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from trainer import datasets
from trainer.answers import final_answer, reference_answer
from trainer.errors import ConfigError
from trainer.part import setting
from trainer.roots import declared, locate
from trainer.tasks.base import Row, Task

ROOTS = "ISENTROPE_DATASET_ROOTS"
HUB = re.compile(r"hub:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([A-Za-z0-9][\w./-]*):([A-Za-z0-9][\w.-]*)")
HUB_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


class Dataset(Task):
    """Data set: prompts and reference answers from a file of your own.

    An answer counts as right where it equals the reference: what stands in the last \\boxed{}, else behind the last
    ####, else the last number, else the text itself. Combine with other rewards for other ideas of right.
    """

    title: ClassVar[str] = "Data set"
    type: Literal["dataset"] = "dataset"
    path: str = setting("", help="A JSONL, CSV, TSV or Parquet file, or hub:ORG/NAME@REVISION:SPLIT.", max_length=1000)
    prompt_column: str = setting(
        "prompt", help="Column with the problem: text, or a list of {role, content}.", max_length=200
    )
    answer_column: str = setting(
        "answer", help="Column with the reference answer; empty where there is none.", max_length=200
    )
    template: str = setting(
        "{prompt}", help="What the model is asked; {prompt} stands for the problem.", max_length=10_000
    )
    system: str = setting(
        "", help="System message, or text in front of the prompt without a chat template.", max_length=10_000
    )
    chat_template: bool = setting(True, help="Put the prompt through the model's chat template where it has one.")
    held_out: float = setting(0.1, help="Share of the rows kept for evaluation.", gt=0, lt=1)
    held_out_rows: int = setting(
        0, help="Rows kept for evaluation instead of the share; 0 uses the share.", ge=0, le=1_000_000, advanced=True
    )
    max_rows: int = setting(
        0,
        help="Read only the first rows of the file; 0 reads all.",
        unit="rows",
        ge=0,
        le=datasets.MAX_ROWS,
        advanced=True,
    )
    split_seed: int = setting(
        0, help="Another seed keeps other rows for evaluation.", ge=0, le=2**31 - 1, advanced=True
    )

    @field_validator("template")
    @classmethod
    def _names_the_prompt(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError("the template must contain {prompt}, which stands for the problem")
        return template

    @property
    def chat(self) -> bool:
        return self.chat_template

    def files(self) -> list[Path]:
        """Return the files to read, from the hub's cache where the path names a hub; raise ConfigError without any."""
        if not self.path:
            raise ConfigError("task.path: choose a data set", "task.path")
        if self.path.startswith("hub:"):
            return _hub_files(self.path)
        return [locate(self.path, declared(ROOTS), field="task.path", variable=ROOTS)]

    def check(self) -> None:
        if self.path.startswith("hub:"):
            if not HUB.fullmatch(self.path):
                raise ConfigError(f"task.path: {self.path} must read hub:ORG/NAME@REVISION:SPLIT", "task.path")
            return
        for file in self.files():
            _check_columns(self, file)

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        files = self.files()
        train, held_out = _split(self, tuple((file, file.stat().st_mtime_ns) for file in files))
        chosen = list(held_out if split == "held_out" else train)
        random.Random(seed).shuffle(chosen)
        return chosen

    def score(self, row: Row, completion: str) -> float | None:
        wanted = reference_answer(row.answer)
        return None if wanted is None else float(final_answer(completion) == wanted)

    def canonical(self, row: Row, completion: str) -> str | None:
        return final_answer(completion)


@lru_cache(maxsize=2)
def _split(task: Dataset, files: tuple[tuple[Path, int], ...]) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Return (train, held out); which side a problem is on depends on itself alone, so appended rows move no other.

    Rows of the same problem share a side. `files` carries change times, so that a changed file is read again.
    """
    rows = list(_rows(task, [file for file, _ in files]))
    if not rows:
        raise ConfigError(
            f"task.path: {task.path} has no row with a filled {task.prompt_column!r}"
            + (f" and {task.answer_column!r}" if task.answer_column else ""),
            "task.path",
        )
    drawn = {row.key.partition("-")[0]: _draw(task, row) for row in rows}
    order = sorted(drawn, key=drawn.__getitem__)
    if len(order) < 2:
        raise ConfigError(f"task.path: {task.path} has one problem only; evaluation needs another one", "task.path")
    count = task.held_out_rows or sum(value < task.held_out for value in drawn.values())
    held = set(order[: min(max(count, 1), len(order) - 1)])
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        sides[row.key.partition("-")[0] in held].append(row)
    return tuple(sides[0]), tuple(sides[1])


def _draw(task: Dataset, row: Row) -> float:
    """Return a number in [0, 1) that the problem and the split's seed alone decide."""
    return int(_digest(f"{task.split_seed} {row.key.partition('-')[0]}"), 16) / 16**16


def _rows(task: Dataset, files: Iterable[Path]) -> Iterable[Row]:
    """Yield the usable rows: filled prompt and answer, no exact repetition; the same problem again is numbered."""
    seen: dict[str, dict[str, None]] = {}
    left = task.max_rows or datasets.MAX_ROWS
    wanted = [name for name in (task.prompt_column, task.answer_column) if name]
    for file in files:
        _check_columns(task, file)
        for cells in datasets.read(file, limit=left, columns=wanted):
            left -= 1
            row = _row(task, cells)
            if row is None:
                continue
            answers = seen.setdefault(row.key, {})
            if row.answer in answers:
                continue
            answers[row.answer] = None
            yield row if len(answers) == 1 else Row(f"{row.key}-{len(answers)}", row.prompt, row.answer, row.extra)


def _check_columns(task: Dataset, file: Path) -> None:
    names = datasets.columns_of(file)
    wanted = {"task.prompt_column": task.prompt_column, "task.answer_column": task.answer_column or names[0]}
    for field, name in wanted.items():
        if name not in names:
            listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            raise ConfigError(f"{field}: there is no column {name!r}; the columns are {listed}", field)


def _row(task: Dataset, cells: dict[str, Any]) -> Row | None:
    value = cells.get(task.prompt_column)
    answer = datasets.cell_text(cells.get(task.answer_column)).strip() if task.answer_column else ""
    messages = _messages(task, value)
    if messages is None or (task.answer_column and not answer):
        return None
    key = _digest(datasets.cell_text(value))
    extra = {"messages": messages} if task.chat_template else {}
    return Row(key, "\n\n".join(turn["content"] for turn in messages), answer, extra)


def _messages(task: Dataset, value: Any) -> list[dict[str, str]] | None:
    """Return the conversation to put to the model, the template around its last turn; None for an empty cell."""
    if datasets.is_messages(value):
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in value]
        if turns[-1]["role"] == "assistant":
            turns.pop()  # the model is to say this itself
    else:
        turns = [{"role": "user", "content": datasets.cell_text(value)}]
    if not turns or not turns[-1]["content"].strip():
        return None
    turns[-1]["content"] = task.template.replace("{prompt}", turns[-1]["content"])  # not format(): braces are data
    if task.system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": task.system})
    return turns


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _hub_files(source: str) -> list[Path]:
    """Return the data files of one split at one revision; loading scripts are never fetched."""
    match = HUB.fullmatch(source)
    if not match:
        raise ConfigError(f"task.path: {source} must read hub:ORG/NAME@REVISION:SPLIT", "task.path")
    name, revision, split = match.groups()
    try:
        from huggingface_hub import snapshot_download

        patterns = [f"*{split}*{suffix}" for suffix in HUB_SUFFIXES]
        folder = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except Exception as error:  # the hub client raises its own, the HTTP library's and the system's errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(
            f"task.path: cannot fetch {name} at {revision} ({reason}); where no hub is reachable, upload the file",
            "task.path",
        ) from error
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix in HUB_SUFFIXES and split in path.name)
    if not found:
        raise ConfigError(f"task.path: {name} has no Parquet, JSONL or CSV file of the split {split!r}", "task.path")
    return found
