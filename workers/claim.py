"""Leases. A claim is one conditional UPDATE; every later write for the attempt carries the lease token."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from webapp.runs.models import Gpu, Run, RunQuerySet, State

LEASE = timedelta(seconds=30)
# Between attempts nothing of the old process may be taken for the new one's.
FRESH = {
    "pid": None,
    "pid_started": None,
    "boot_id": "",
    "phase": "",
    "phase_done": 0,
    "phase_total": 0,
    "heartbeat_at": None,
}


class LeaseLost(Exception):
    """Somebody else owns the run, or it ended: stop touching it."""


class Paused(Exception):
    """This process stood still for so long that its leases must be read again before it writes anything."""


class LeaseClock:
    """Knows how long ago the leases were read, counting also the time the machine slept."""

    def __init__(self) -> None:
        self.read_at = boot_seconds()

    def mark(self) -> None:
        self.read_at = boot_seconds()

    def check(self) -> None:
        """Raise Paused if more than half a lease went by since the leases were read."""
        if self.stale():
            raise Paused

    def stale(self) -> bool:
        return boot_seconds() - self.read_at > LEASE.total_seconds() / 2


def boot_seconds() -> float:
    """Return monotonic seconds that go on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def claim(run_id: str, worker: str, gpus: list[Gpu]) -> bool:
    """Lease a queued run and its GPUs to a worker as a new attempt; False if somebody else got there first."""
    with transaction.atomic():
        claimed = Run.objects.filter(pk=run_id, state=State.QUEUED).update(
            state=State.STARTING,
            waiting_reason="",
            attempt=F("attempt") + 1,
            started_at=Now(),
            lease_worker=worker,
            lease_token=F("lease_token") + 1,
            lease_expires_at=Now() + LEASE,
            **FRESH,
        )
        if claimed:
            Gpu.objects.filter(pk__in=[gpu.pk for gpu in gpus]).update(run_id=run_id)
    return bool(claimed)


def fenced(run_id: str, token: int) -> RunQuerySet:
    """Return the run's row as long as the lease holds; nothing afterwards."""
    return Run.objects.alive().filter(pk=run_id, lease_token=token)


def write(run_id: str, token: int, **fields: Any) -> None:
    """Write columns of a leased run; raise LeaseLost if the token is stale."""
    if not fenced(run_id, token).update(**fields):
        raise LeaseLost(run_id)


def renew(run_id: str, token: int) -> bool:
    """Extend a lease, also a lapsed one nobody took; False if it is lost."""
    return bool(fenced(run_id, token).update(lease_expires_at=Now() + LEASE))


def end(run_id: str, token: int, state: str, **fields: Any) -> None:
    """Record the end of the attempt and free its GPUs in one transaction; raise LeaseLost if the token is stale."""
    with transaction.atomic():
        write(run_id, token, state=state, ended_at=Now(), lease_expires_at=None, phase="", **fields)
        Gpu.objects.filter(run_id=run_id).update(run=None)


def take_over(run: Run, worker: str) -> bool:
    """Move an expired lease to this worker, fencing the old owner out; False if it was renewed meanwhile."""
    expired = fenced(run.pk, run.lease_token).filter(lease_expires_at__lt=Now())
    return bool(expired.update(lease_worker=worker, lease_token=F("lease_token") + 1, lease_expires_at=Now() + LEASE))


def put_back(run: Run) -> bool:
    """Return a claimed run that was never started to the queue; False if the lease was renewed meanwhile."""
    with transaction.atomic():
        expired = fenced(run.pk, run.lease_token).filter(lease_expires_at__lt=Now(), state=State.STARTING, pid=None)
        returned = expired.update(
            state=State.QUEUED,
            attempt=F("attempt") - 1,
            lease_worker="",
            lease_token=F("lease_token") + 1,
            lease_expires_at=None,
        )
        if returned:
            Gpu.objects.filter(run=run).update(run=None)
    return bool(returned)
