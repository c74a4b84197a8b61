"""What-if: another objective on a recorded step, or every preset on it. Reads one rollout file, writes one answer."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings

from trainer.errors import ConfigError
from trainer.events import RunFolder
from trainer.objectives import PRESETS, ObjectiveConfig
from webapp import queue
from webapp.runs import whatif

log = logging.getLogger(__name__)

THREADS = 2  # of torch: more hardly help vectors of this size, and two of these processes run


@shared_task(name=queue.WHATIF, soft_time_limit=whatif.LIMIT, time_limit=whatif.LIMIT + 10)
def compute(run_id: str, step: int, key: str, objective: dict[str, Any] | None) -> None:
    """Answer one question, unless somebody did; what goes wrong becomes one sentence for the page."""
    folder = RunFolder(Path(settings.RUNS_ROOT) / run_id)
    if whatif.answer_file(folder.path, key, objective).exists():
        return
    try:
        content = (
            _table(folder, step, run_id, key) if objective is None else _tokens(folder, step, run_id, key, objective)
        )
        whatif.keep(folder.path, key, objective, content)
        whatif.forget(run_id, key)
    except Exception as error:  # whatever it is, a person waits for a sentence; the log gets the rest
        problem, field = _sentence(error, step)
        whatif.say(run_id, key, state=whatif.FAILED, problem=problem, field=field)
        if not isinstance(error, (ConfigError, FileNotFoundError, SoftTimeLimitExceeded)):
            log.exception("What-if on step %d of run %s", step, run_id)


def _table(folder: RunFolder, step: int, run_id: str, key: str) -> bytes:
    from trainer.whatif import read, table

    _calm()
    whatif.say(run_id, key, state=whatif.WORKING, total=len(PRESETS) + 1)
    recording = read(folder.rollout_file(step))
    rows: list[dict[str, Any]] = []
    for row in table(recording):
        rows.append(dataclasses.asdict(row))
        whatif.say(run_id, key, state=whatif.WORKING, done=len(rows), total=len(PRESETS) + 1, rows=rows)
    facts = {
        "completions": recording.batch.sequences,
        "of": recording.completions,
        "tokens": recording.batch.tokens,
        "minibatches": recording.minibatches,
        "described": recording.described,
        "moments": recording.batch.sum_p2 is not None,
    }
    return json.dumps({"state": "done", "rows": rows, "facts": facts}).encode()


def _tokens(folder: RunFolder, step: int, run_id: str, key: str, objective: dict[str, Any]) -> bytes:
    from trainer.whatif import effect, packed, read, row

    _calm()
    whatif.say(run_id, key, state=whatif.WORKING, total=1)
    config = ObjectiveConfig.model_validate(objective)
    recording = read(folder.rollout_file(step))
    done = effect(recording, config)
    return packed(recording, done, row(recording, config, done=done))


def _calm() -> None:
    import torch

    torch.set_num_threads(max(1, min(THREADS, (os.cpu_count() or 1) // 2)))


def _sentence(error: Exception, step: int) -> tuple[str, str]:
    """Return what a person reads, and the field it is about."""
    if isinstance(error, ConfigError):
        text = str(error).rstrip(".")
        name = "." in text.partition(" ")[0]  # a file or setting is written as it is
        return (text if name else text[:1].upper() + text[1:]) + ".", error.field
    if isinstance(error, FileNotFoundError):
        return f"The rollouts of step {step} are no longer there.", ""
    if isinstance(error, SoftTimeLimitExceeded):
        return f"It took longer than {whatif.LIMIT} s; record fewer completions (recording.max_samples).", ""
    if isinstance(error, MemoryError):
        return "Memory ran out; record fewer completions (recording.max_samples).", "recording.max_samples"
    return f"It failed: {type(error).__name__}: {error}"[:500] + ". The worker's log has the details.", ""
