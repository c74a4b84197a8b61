"""What can be known of a config before it runs: quickly in this process, thoroughly in a trainer of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from django.conf import settings
from django.db.models import Min
from pydantic import ValidationError

from trainer import models, preflight
from trainer.config import RunConfig, leased_gpus
from trainer.errors import ConfigError
from trainer.estimate import Estimate
from trainer.model_files import ModelInfo
from trainer.preflight import Preflight, Problem, RewardTrial
from trainer.roots import locate
from webapp.catalog.models import Dataset
from webapp.runs import server_hosts
from webapp.runs.models import Gpu

DEEP_SECONDS = 20.0
CATALOGUE_SECONDS = 20.0
DATASET_ROOTS = "ISENTROPE_DATASET_ROOTS"
# What the trainer's check may see of our environment: no secrets.
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "TMPDIR", "HF_HOME")

_catalogue: tuple[float, list[ModelInfo]] = (0.0, [])


@dataclass
class Checked:
    """Sentences by dotted config field; `note` says why something was not looked at."""

    problems: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    trials: list[RewardTrial] = field(default_factory=list)
    estimate: Estimate | None = None
    note: str = ""


def model_of(config: RunConfig) -> ModelInfo:
    """Return what is known of the config's model; what forbids its use stands in `problems`."""
    return models.inspect(config.model.source, settings.MODEL_ROOTS)


def catalogue() -> list[ModelInfo]:
    """Return the models that can be chosen; folders are looked at again every few seconds."""
    global _catalogue
    if not _catalogue[1] or time.monotonic() - _catalogue[0] > CATALOGUE_SECONDS:
        _catalogue = (time.monotonic(), models.catalogue(settings.MODEL_ROOTS))
    return _catalogue[1]


def gpu_count() -> int:
    """Return how many GPUs the lab's workers have announced."""
    return Gpu.objects.count()


def smallest_gpu() -> int | None:
    """Return the memory of the smallest announced GPU, bytes; a run may get any of them. None where there is none."""
    return Gpu.objects.filter(memory_bytes__gt=0).aggregate(smallest=Min("memory_bytes"))["smallest"]


def quick(config: RunConfig) -> Checked:
    """Return what files and rows can tell; no model is loaded."""
    report = preflight.check(config, deep=False, folder=Path(settings.RUNS_ROOT), gpu_bytes=smallest_gpu())
    checked = read(report)
    if problems := model_of(config).problems:
        checked.problems["model.source"] = sentence(problems[0])
    wanted, present = leased_gpus(config), gpu_count()
    if wanted > present:
        advice = f"ask for {present} or fewer" if present else "set 0 to run on the CPU"
        checked.problems["resources.gpus"] = f"{wanted} GPUs are asked for and the lab has {present}; {advice}."
    if why := server_hosts.refusal(config.sampling.model_dump()):
        checked.problems[server_hosts.FIELD] = why
    checked.problems |= _data(config)
    return checked


def _data(config: RunConfig) -> dict[str, str]:
    """Return what is wrong with the file a task reads: only uploads and declared folders may be named."""
    path = getattr(config.task, "path", None)
    if path is None or path.startswith("hub:"):
        return {}
    if not path:
        return {"task.path": "Choose a dataset, or upload one first."}
    try:
        file = locate(path, settings.DATASET_ROOTS, field="task.path", variable=DATASET_ROOTS)
    except ConfigError as error:
        return {error.field: sentence(str(error))}
    dataset = Dataset.objects.filter(path=file.name).first()
    if dataset is None:
        return {}
    return {
        f"task.{name}": f"“{column}” is no column of {dataset.name}; choose one of {', '.join(dataset.column_names)}."
        for name in ("prompt_column", "answer_column")
        if (column := getattr(config.task, name, "")) and column not in dataset.column_names
    }


async def deep(config: RunConfig) -> Checked:
    """Let a trainer process look at model, data and reward; it ends after 20 s or when nobody waits any more."""
    if find_spec("torch") is None:
        return Checked(note="The trainer is not installed beside the web app; the worker checks when the run starts.")
    with tempfile.TemporaryDirectory(prefix="isentrope-check-") as folder:
        path = Path(folder) / "config.json"
        path.write_text(config.model_dump_json())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trainer", "check", "--json", str(path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=child_environment(),
            start_new_session=True,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), DEEP_SECONDS)
        except TimeoutError:
            note = f"The check took longer than {DEEP_SECONDS:.0f} s and was ended; the run checks again at its start."
            return Checked(note=note)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
    try:
        return read(Preflight.model_validate_json(output))
    except ValidationError:
        return Checked(note="The trainer could not check this config; the run checks again at its start.")


def child_environment() -> dict[str, str]:
    """Return where things lie, and none of the web app's secrets."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {
        "PYTHONPATH": str(settings.BASE_DIR),
        "ISENTROPE_HOME": str(settings.ISENTROPE_HOME),
        "ISENTROPE_MODEL_ROOTS": os.pathsep.join(map(str, settings.MODEL_ROOTS)),
        DATASET_ROOTS: os.pathsep.join(map(str, settings.DATASET_ROOTS)),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def read(report: Preflight) -> Checked:
    """Return the trainer's report in the page's words."""
    return Checked(
        problems={problem.field: text for problem, text in _said(report.problems)},
        # What is said of memory stands with its picture.
        warnings=[text for problem, text in _said(report.warnings) if problem.field != preflight.MEMORY],
        trials=report.trials,
        estimate=report.estimate,
    )


def _said(problems: Iterable[Problem]) -> list[tuple[Problem, str]]:
    return [(problem, sentence(problem.message.removeprefix(f"{problem.field}: "))) for problem in problems]


def sentence(text: str) -> str:
    """Return the text with a capital in front and a stop at its end; paths and names that start it stay as they are."""
    head = text.split(" ", 1)[0]
    start = text if any(sign in head for sign in ".:_/@") else text[:1].upper() + text[1:]
    return start if start.endswith((".", "!", "?")) else start + "."
