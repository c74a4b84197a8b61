"""Who runs where: priority, then first come first served, then what fits; one scheduler at a time.

A run that no worker could ever hold waits without blocking others. Otherwise the first waiting run of a kind (CPU or
GPU) blocks later ones of its kind, so that small runs cannot starve a large one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from django.db import connection, transaction
from django.db.models.functions import Now

from webapp import queue
from webapp.runs import live
from webapp.runs.models import ALIVE, Gpu, Run, Worker
from workers.claim import claim

FRESH = timedelta(seconds=20)  # a worker that did not beat for longer gets no new runs
LOOKED_AT = 200  # queued runs considered in one round
LOCK = 0x15E27  # advisory lock of the scheduler


@dataclass
class Place:
    """What a worker can still take."""

    worker: str
    slots: int
    slots_free: int
    gpus: int
    gpus_free: list[Gpu] = field(default_factory=list)

    def fits(self, run: Run) -> bool:
        return len(self.gpus_free) >= run.gpus_wanted if run.gpus_wanted else self.slots_free > 0

    def could_ever_fit(self, run: Run) -> bool:
        return self.gpus >= run.gpus_wanted if run.gpus_wanted else self.slots > 0


@transaction.atomic
def schedule() -> list[str]:
    """Lease every queued run that fits to a worker, tell the others what they wait for; return the ids started."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
    Gpu.objects.filter(run__isnull=False).exclude(run__state__in=ALIVE).update(run=None)
    places, started, waiting, blocked = _places(), [], 0, set()
    for run in Run.objects.queued()[:LOOKED_AT]:
        place = None if bool(run.gpus_wanted) in blocked else _choose(run, places)
        if place and _start(run, place):
            started.append(run.pk)
            continue
        waiting += 1
        possible = any(place.could_ever_fit(run) for place in places)
        behind = bool(run.gpus_wanted) in blocked and possible
        _explain(run, f"{ordinal(waiting)} in the queue" if behind else _reason(run, places))
        if possible:
            blocked.add(bool(run.gpus_wanted))
    return started


def _places() -> list[Place]:
    workers = Worker.objects.filter(heartbeat_at__gt=Now() - FRESH).prefetch_related("gpus")
    busy: dict[str, int] = {}
    for worker in Run.objects.alive().filter(gpus_wanted=0).values_list("lease_worker", flat=True):
        busy[worker] = busy.get(worker, 0) + 1
    return [
        Place(
            worker=worker.name,
            slots=worker.slots,
            slots_free=worker.slots - busy.get(worker.name, 0),
            gpus=len(gpus := list(worker.gpus.all())),
            gpus_free=[gpu for gpu in gpus if gpu.run_id is None and not gpu.suspect],
        )
        for worker in workers
    ]


def _choose(run: Run, places: list[Place]) -> Place | None:
    """Return the emptiest worker for a CPU run, the one with the fewest GPUs to spare for a GPU run."""
    fitting = [place for place in places if place.fits(run)]
    return min(fitting, key=lambda place: len(place.gpus_free) if run.gpus_wanted else -place.slots_free, default=None)


def _start(run: Run, place: Place) -> bool:
    gpus = place.gpus_free[: run.gpus_wanted]
    if not claim(run.pk, place.worker, gpus):
        return False
    place.gpus_free = place.gpus_free[run.gpus_wanted :]
    place.slots_free -= not run.gpus_wanted
    queue.ring_worker(place.worker)
    transaction.on_commit(partial(live.notify, run.pk))
    return True


def _reason(run: Run, places: list[Place]) -> str:
    """Return one clause that says what is missing."""
    if not places:
        return "waiting for a worker: none is running"
    if not run.gpus_wanted:
        slots = sum(place.slots for place in places)
        return f"waiting for a CPU slot: {max(0, sum(place.slots_free for place in places))} of {slots} free"
    wanted = f"{run.gpus_wanted} GPU{'s' if run.gpus_wanted > 1 else ''}"
    most = max(place.gpus for place in places)
    if most < run.gpus_wanted:
        return f"waiting for {wanted}: the largest worker has {most}"
    free = sum(len(place.gpus_free) for place in places)
    return f"waiting for {wanted}: {free} of {sum(place.gpus for place in places)} free"


def _explain(run: Run, reason: str) -> None:
    if reason != run.waiting_reason and Run.objects.queued().filter(pk=run.pk).update(waiting_reason=reason):
        transaction.on_commit(partial(live.notify, run.pk))


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, … 11th, …"""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
