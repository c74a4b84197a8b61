"""The supervisor: one thread per worker that tends all runs leased to it."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from django.db.models.functions import Now

from webapp.runs import live
from webapp.runs.models import Run, State, Worker
from webapp.settings import env_bool
from workers import claim, gpus
from workers.attempt import Attempt
from workers.claim import LeaseClock, LeaseLost, Paused, boot_seconds
from workers.process import here
from workers.scheduler import schedule
from workers.stream import Broker, Forwarder, Hurry

log = logging.getLogger(__name__)

TICK = 0.1  # seconds between looks at the run folders
LOOK = 0.4  # seconds between looks at the rows, unless woken
BEAT = 5.0  # seconds between heartbeats and renewals
ROUND = 10.0  # seconds between scheduling, reaping and GPU checks
AWAY = 2.0  # seconds to wait for a database that is away
BROKEN = 5.0  # seconds to leave a run alone whose tending broke
GONE = timedelta(minutes=1)  # how old the heartbeat of a worker that left looks
EXIT_WAIT = 30.0  # seconds for trainers to write a checkpoint when the worker takes them along


def worker_name() -> str:
    """Return a name that is the same after a restart: ISENTROPE_WORKER_NAME, else the host's."""
    return (os.environ.get("ISENTROPE_WORKER_NAME") or socket.gethostname() or "worker")[:100]


class Supervisor:
    """Starts, follows, steers, stops and records the runs leased to one worker."""

    def __init__(self, name: str, *, slots: int | None = None) -> None:
        self.name, self.slots = name, slots if slots is not None else gpus.slots()
        self.attempts: dict[str, Attempt] = {}
        self.clock = LeaseClock()
        self.broker = Broker(settings.REDIS_URL)
        self.worker: Worker | None = None
        self.beat_at = self.round_at = self.look_at = 0.0
        self.in_touch_since = boot_seconds()  # unbroken contact with the database
        self.broken: dict[str, float] = {}
        self._bell, self._leaving = threading.Event(), threading.Event()

    def wake(self) -> None:
        """Look at the rows now; callable from any thread."""
        self._bell.set()

    def leave(self) -> None:
        """End `run` soon; callable from any thread."""
        self._leaving.set()
        self._bell.set()

    def run(self) -> None:
        """Tend runs until `leave`. A database that is away is waited for; trainers notice neither."""
        with self._alone(), Hurry(self._forwarders):
            while not self._leaving.is_set():
                pause = TICK if self._safely_tick() else AWAY
                if self._bell.wait(pause):
                    self._bell.clear()
                    self.look_at = 0.0
            self._depart()
            connection.close()

    def _forwarders(self) -> list[Forwarder]:
        """Return what moves the frames of our runs, as long as we may believe that they are ours."""
        return [] if self.clock.stale() else [attempt.forwarder for attempt in list(self.attempts.values())]

    def tick(self) -> None:
        """Do one round of everything that is due; after a pause the leases are read before anything is written."""
        now = boot_seconds()
        rows = self._leases() if now >= self.look_at or self.clock.stale() else None
        if now >= self.beat_at:
            self._beat()
            self.beat_at = now + BEAT
        if now >= self.round_at and not self._leaving.is_set():
            self._round()
            self.round_at = now + ROUND
        if rows is None:
            for attempt in list(self.attempts.values()):
                self._with(attempt, attempt.pump)
            return
        self.look_at = now + LOOK
        for run in rows:
            self._tend(run)

    def _safely_tick(self) -> bool:
        """Tick; False if the database is away. A fault of our own is logged and must not end supervision."""
        try:
            self.tick()
            return True
        except Paused:
            log.warning("This worker stood still; its leases are read again before anything is written")
            self._start_over()
            return True
        except (OperationalError, InterfaceError) as error:
            log.warning("The database is away, trainers go on: %s", str(error).strip())
            connection.close()
        except Exception:
            log.exception("The supervisor failed and goes on")
        self._start_over()
        return False

    def _start_over(self) -> None:
        self.beat_at = self.look_at = 0.0
        self.in_touch_since = boot_seconds()

    # Rows ----------------------------------------------------------------------------------------------------------

    def _leases(self) -> list[Run]:
        """Read the leases and let go of what is not ours any more."""
        rows = {run.pk: run for run in Run.objects.leased_to(self.name).with_watched()}
        self.clock.mark()
        for run_id, attempt in list(self.attempts.items()):
            row = rows.get(run_id)
            if row is None or row.lease_token != attempt.run.lease_token:
                self._let_go(attempt)
        return list(rows.values())

    def _tend(self, run: Run) -> None:
        attempt = self.attempts.setdefault(run.pk, Attempt(run, self.clock, self.broker))
        self._with(attempt, lambda: attempt.tend(run))

    def _with(self, attempt: Attempt, work: Callable[[], None]) -> None:
        """Do work for one run so that its faults stay its own."""
        run_id = attempt.run.pk
        if self.broken.get(run_id, 0.0) > boot_seconds():
            return
        try:
            work()
        except LeaseLost:
            self._let_go(attempt)
        except (OperationalError, InterfaceError, Paused):
            raise
        except Exception:
            log.exception("Run %s could not be tended; the next try is in %.0f s", run_id, BROKEN)
            self.broken[run_id] = boot_seconds() + BROKEN
            return
        self.broken.pop(run_id, None)
        if attempt.ended:
            self.attempts.pop(run_id, None)

    def _let_go(self, attempt: Attempt) -> None:
        """Stop touching a run. Its processes are ended only where nobody else would tend them."""
        self.attempts.pop(attempt.run.pk, None)
        row = Run.objects.filter(pk=attempt.run.pk).first()
        adopted = row is not None and row.alive and row.attempt == attempt.run.attempt
        if not adopted:
            log.warning(
                "Run %s: the lease is lost; ending what is left of attempt %d", attempt.run.pk, attempt.run.attempt
            )
            attempt.kill()

    def _beat(self) -> None:
        """Renew first: a lease matters more than a heartbeat."""
        for attempt in list(self.attempts.values()):
            claim.renew(attempt.run.pk, attempt.run.lease_token)
        if self._leaving.is_set():
            return
        if self.worker is None or not Worker.objects.filter(pk=self.worker.pk).update(heartbeat_at=Now()):
            self._register()

    def _register(self) -> None:
        self.worker, _ = Worker.objects.update_or_create(
            name=self.name,
            defaults={
                "host": socket.gethostname()[:120],
                "slots": self.slots,
                "boot_id": here(),
                "started_at": Now(),
                "heartbeat_at": Now(),
            },
        )
        gpus.register(self.worker)
        log.info("Worker %s takes %d CPU runs and has %d GPUs", self.name, self.slots, self.worker.gpus.count())

    def _round(self) -> None:
        if self.worker:
            gpus.check(self.worker)
        self.reap()
        if schedule():
            self.look_at = 0.0

    def reap(self) -> None:
        """Take over runs whose lease expired, to adopt or to end them; return never-started ones to the queue.

        Only after a lease's time of unbroken contact: when the database was away, the owners renew first.
        """
        if boot_seconds() - self.in_touch_since < claim.LEASE.total_seconds():
            return
        for run in Run.objects.lease_expired(Now()).exclude(lease_worker=self.name):
            if run.state == State.STARTING and run.pid is None:
                claim.put_back(run)
            elif claim.take_over(run, self.name):
                log.warning("Run %s: took over from worker %s", run.pk, run.lease_worker)
                self.look_at = 0.0
            live.notify(run.pk)

    # Coming and going ----------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process of this host tends the same name."""
        path = Path(settings.RUNS_ROOT) / f".{self.name.replace('/', '_')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as file:
            while not _locked(file) and not self._leaving.wait(1.0):
                log.warning(
                    "Another worker is called %s; this one waits (ISENTROPE_WORKER_NAME tells them apart)", self.name
                )
            yield

    def _depart(self) -> None:
        """Say goodbye to the scheduler; take the trainers along if so configured, else leave them to a next worker."""
        self._quietly(lambda: Worker.objects.filter(name=self.name).update(heartbeat_at=Now() - GONE))
        if not env_bool("ISENTROPE_STOP_RUNS_ON_EXIT", False):
            return
        for attempt in list(self.attempts.values()):
            attempt.terminate()
        deadline = boot_seconds() + EXIT_WAIT
        while self.attempts and boot_seconds() < deadline:
            self._safely_tick()
            time.sleep(TICK)
        for attempt in list(self.attempts.values()):
            attempt.kill()
        self.look_at = 0.0
        self._safely_tick()

    def _quietly(self, write: Callable[[], object]) -> None:
        try:
            write()
        except (OperationalError, InterfaceError) as error:
            log.warning("The database is away while leaving: %s", str(error).strip())


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
