"""`python -m workers.alive`: whether this worker's heartbeat is fresh. A process that is up can still be deaf."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")

import django

django.setup()

from django.utils import timezone  # noqa: E402

from webapp.health import WORKER_SILENT_AFTER  # noqa: E402
from webapp.runs.models import Worker  # noqa: E402
from workers.supervise import worker_name  # noqa: E402


def alive(name: str) -> bool:
    return Worker.objects.filter(name=name, heartbeat_at__gt=timezone.now() - WORKER_SILENT_AFTER).exists()


if __name__ == "__main__":
    sys.exit(0 if alive(worker_name()) else f"Worker {worker_name()} has not reported for a minute.")
