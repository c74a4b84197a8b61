"""The Celery app: `celery -A workers worker -P threads`. Doorbells come in; the supervisor thread does the work."""

from __future__ import annotations

import os
import threading
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")

import django
from celery import Celery
from celery.signals import celeryd_after_setup, worker_init, worker_shutdown

django.setup()

from webapp.queue import worker_queue  # noqa: E402
from workers.supervise import Supervisor, worker_name  # noqa: E402

app = Celery("isentrope")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["workers"], force=True)

supervisor = Supervisor(worker_name())
_thread = threading.Thread(target=supervisor.run, name="supervisor")


@celeryd_after_setup.connect
def _own_queue(instance: Any, **kwargs: Any) -> None:
    """Besides the common queue, read the one that wakes just this worker."""
    instance.app.amqp.queues.select_add(worker_queue(supervisor.name))


@worker_init.connect
def _start(**kwargs: Any) -> None:
    """Before the broker is reached: runs are tended without one."""
    _thread.start()


@worker_shutdown.connect
def _stop(**kwargs: Any) -> None:
    supervisor.leave()
    _thread.join()
