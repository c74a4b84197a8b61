"""What-if on a recorded step: questions and answers. A worker computes, a file in the run folder keeps.

The state of a question under way lies in the cache: {state: waiting | working | failed, done, total, rows, problem,
field}. Answers are files of RUNS_ROOT/<run>/whatif, named after the step and a digest of all that decides the answer;
they may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from django.core.cache import cache as store
from pydantic import ValidationError

import trainer
from trainer.config import errors_of
from trainer.errors import ConfigError
from trainer.objectives import ObjectiveConfig
from webapp import queue
from webapp.runs.models import Run

LIMIT = 600  # seconds a worker may compute
WAITING, WORKING, FAILED = "waiting", "working", "failed"
ASK_AGAIN = 60  # seconds after which a question that no worker took is sent again, as rings expire
SILENT = 20  # seconds after which the page is told that no worker answers
FAILED_SECONDS = 15  # a failure is not computed again before
KEPT = 24  # newest answers kept in a run folder
TABLE = "table"


@dataclass(frozen=True)
class Question:
    """One objective on a recorded step, or with `objective` None every preset on it."""

    run_id: str
    step: int
    path: Path  # of the rollout file
    objective: dict[str, Any] | None

    @property
    def key(self) -> str:
        """Return the step and a digest of file, objective and code."""
        status = self.path.stat()
        text = json.dumps([status.st_mtime_ns, status.st_size, self.objective, code()], sort_keys=True)
        return f"step-{self.step:08d}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def question(run: Run, step: int, objective: ObjectiveConfig | None) -> Question:
    """Return the question; raises FileNotFoundError where the step was not recorded."""
    path = run.folder.rollout_file(step)
    path.stat()
    return Question(run.pk, step, path, None if objective is None else objective.model_dump(mode="json"))


def objective_of(text: str) -> ObjectiveConfig:
    """Return the objective of a query; raises ConfigError naming the wrong field."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError("objective must be JSON {preset, parts}.", "objective") from error
    if not isinstance(data, dict):
        raise ConfigError("objective must be a JSON object {preset, parts}.", "objective")
    try:
        return ObjectiveConfig.model_validate(data)
    except ValidationError as error:
        field, message = next(iter(errors_of(error).items()))
        raise ConfigError(message[:1].upper() + message[1:] + ".", field) from error


def answer_file(folder: Path, key: str, objective: Any) -> Path:
    return folder / "whatif" / f"{key}.{'json' if objective is None else 'bin'}"


def answer(run: Run, asked: Question) -> bytes | dict[str, Any]:
    """Return the answer's bytes, or the state of the question; asks a worker where nobody did."""
    key = asked.key
    try:
        return answer_file(run.folder.path, key, asked.objective).read_bytes()
    except FileNotFoundError:
        state = store.get(cache_key(run.pk, key))
    if state is None:
        state = {"state": WAITING, "asked": time.time(), "done": 0, "total": 0, "rows": []}
        if store.add(cache_key(run.pk, key), state, ASK_AGAIN):
            queue.ring(queue.WHATIF, run.pk, asked.step, key, asked.objective)
    silent = state["state"] == WAITING and time.time() - state.get("asked", 0) > SILENT
    return {**state, "silent": silent}


def cache_key(run_id: str, key: str) -> str:
    return f"whatif:{run_id}:{key}"


def say(run_id: str, key: str, **state: Any) -> None:
    """Note how far a question has come."""
    seconds = FAILED_SECONDS if state["state"] == FAILED else LIMIT + 10
    store.set(cache_key(run_id, key), {"done": 0, "total": 0, "rows": [], **state}, seconds)


def keep(folder: Path, key: str, objective: Any, content: bytes) -> None:
    """Write an answer, whole or not at all, and remove the oldest ones; raises FileNotFoundError for a deleted run."""
    path = answer_file(folder, key, objective)
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_bytes(content)
    draft.replace(path)
    old = sorted((file for file in path.parent.iterdir()), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in old[KEPT:]:
        file.unlink(missing_ok=True)


def forget(run_id: str, key: str) -> None:
    """Drop the state of a question that has its answer."""
    store.delete(cache_key(run_id, key))


@cache
def code() -> str:
    """Return a digest of the code that answers: a changed formula makes new answers."""
    root = Path(trainer.__file__).parent
    files = sorted([*(root / "objectives").rglob("*.py"), *(root / "whatif").rglob("*.py")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
