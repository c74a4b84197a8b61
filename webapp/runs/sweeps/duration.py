"""How long runs will take, told from earlier runs of the same model on the same kind of place."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from django.utils import timezone
from pydantic import ValidationError

from trainer.config import RunConfig, leased_gpus
from trainer.estimate import estimate
from trainer.model_files import ModelInfo
from webapp.runs.models import Run, State, Worker

LOOKED_AT = 20  # newest earlier runs
ALIVE_WITHIN = timedelta(minutes=2)  # a worker silent for longer is not counted on


@dataclass(frozen=True)
class Duration:
    """`seconds` one after another, `wall` with `slots` at a time, as `known` earlier runs went; 0: nobody knows."""

    tokens: int
    seconds: float = 0.0
    wall: float = 0.0
    slots: int = 0
    known: int = 0


def tokens_of(config: RunConfig) -> int:
    """Return the completion tokens of a run at most, evaluations included, what a rollout strategy may add left out."""
    # They do not depend on the model, whose files would have to be read.
    cost = estimate(config, ModelInfo(source=config.model.source, kind="unread"), None)
    learned = cost.generated_least * cost.steps
    return (learned + cost.evaluation_completions) * config.sampling.max_completion_tokens


def duration_of(configs: Iterable[RunConfig], times: int) -> Duration:
    """Return what `times` runs of each config take together; one kind without a past leaves the time unknown."""
    work: dict[tuple[str, int, int], int] = {}
    count = 0
    for config in configs:
        place = (config.model.source, leased_gpus(config), config.resources.processes)
        work[place] = work.get(place, 0) + tokens_of(config) * times
        count += times
    paces = {place: _pace(*place) for place in work}
    total = sum(work.values())
    if not count or not all(paces.values()):
        return Duration(total)
    seconds = sum(statistics.median(paces[place]) * tokens for place, tokens in work.items())
    slots = min(_slots(max(gpus for _, gpus, _ in work)), count)
    return Duration(total, seconds, seconds / max(1, slots), slots, sum(map(len, paces.values())))


def _pace(model: str, gpus: int, processes: int) -> list[float]:
    """Return seconds for each token of the newest finished runs; runs of several attempts tell no time."""
    done = Run.objects.filter(
        state=State.FINISHED, model=model, gpus_wanted=gpus, attempt=1, started_at__isnull=False, ended_at__isnull=False
    )
    found = []
    for run in done.order_by("-ended_at").only("id", "config", "started_at", "ended_at")[:LOOKED_AT]:
        try:
            config = RunConfig.model_validate(run.config)
        except ValidationError:
            continue  # a config of an older version
        tokens = tokens_of(config)
        if tokens and config.resources.processes == processes:
            found.append((run.ended_at - run.started_at).total_seconds() / tokens)
    return found


def _slots(gpus: int) -> int:
    """Return how many such runs the workers take at a time."""
    workers = Worker.objects.filter(heartbeat_at__gt=timezone.now() - ALIVE_WITHIN)
    if gpus:
        return sum(worker.gpus.count() // gpus for worker in workers.prefetch_related("gpus"))
    return sum(worker.slots for worker in workers)
