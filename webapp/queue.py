"""The doorbells: the one place that knows task names. Rows are the queue; a ring only says “look now”."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import Celery
from django.db import transaction
from kombu.exceptions import OperationalError

log = logging.getLogger(__name__)

# The workers register their tasks under these names: runs.* in workers/tasks.py, analysis.* in workers/analysis.py.
SCHEDULE = "runs.schedule"  # look at the queue; any worker
WAKE = "runs.wake"  # look at your runs; the worker whose queue it is
PICTURE = "analysis.picture"  # draw an objective's picture
WHATIF = "analysis.whatif"  # apply objectives to a recorded step

Ring = tuple[str, tuple[Any, ...], str | None]
_held: ContextVar[dict[Ring, None] | None] = ContextVar("held", default=None)

RING_SECONDS = 60  # a ring nobody hears is worthless after this

_app = Celery("isentrope", set_as_current=False)
_app.config_from_object("django.conf:settings", namespace="CELERY")
# A person waits for the page: without a broker the ring gives up at once.
GIVE_UP = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0, "socket_connect_timeout": 2}
_app.conf.broker_transport_options = {**_app.conf.broker_transport_options, **GIVE_UP}


def worker_queue(worker: str) -> str:
    """Return the name of the queue only this worker reads."""
    return f"worker.{worker}"


@contextmanager
def together() -> Iterator[None]:
    """Ring every doorbell that is rung inside once, whatever the number of runs."""
    held: dict[Ring, None] = {}
    token = _held.set(held)
    try:
        yield
    finally:
        _held.reset(token)
    for task, args, queue in held:
        ring(task, *args, queue=queue)


def ring(task: str, *args: Any, queue: str | None = None) -> None:
    """Send the task after the current transaction commits.

    A broker that is away costs a delay, not the request: workers look at the rows by themselves every few seconds.
    """
    if (held := _held.get()) is not None:
        held[task, args, queue] = None
        return
    transaction.on_commit(lambda: _send(task, args, queue))


def ring_worker(worker: str) -> None:
    """Wake the worker that holds a run's lease; does nothing without a name."""
    if worker:
        ring(WAKE, queue=worker_queue(worker))


def _send(task: str, args: tuple[Any, ...], queue: str | None) -> None:
    try:
        _app.send_task(task, args=args, queue=queue, retry=False, ignore_result=True, expires=RING_SECONDS)
    except OperationalError as error:
        log.warning("No broker for %s: %s", task, error)
