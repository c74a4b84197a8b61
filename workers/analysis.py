"""The Celery app of analyses: `celery -A workers.analysis worker -Q analysis -P prefork -c 2`.

Small computations that pages wait for, in processes of their own: they load torch, may be killed for taking too long,
and hold up no run. One file a task; a task named analysis.… reaches this queue by itself (CELERY_TASK_ROUTES).
"""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")

import django
from celery import Celery

django.setup()

app = Celery("isentrope-analysis")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.imports = ("workers.pictures", "workers.whatif")
