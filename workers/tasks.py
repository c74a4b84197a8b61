"""The doorbells: each looks at rows and calls one function, so a doubled or lost message changes nothing."""

from __future__ import annotations

from celery import shared_task

from webapp import queue
from workers import scheduler


@shared_task(name=queue.SCHEDULE)
def schedule() -> None:
    """The queue or the free places changed."""
    scheduler.schedule()


@shared_task(name=queue.WAKE)
def wake() -> None:
    """A run of this worker has a new request or lease."""
    from workers.app import supervisor

    supervisor.wake()
