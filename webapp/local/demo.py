"""The demo run: the example config on the committed tiny model."""

from __future__ import annotations

from django.conf import settings

from trainer import config
from webapp.accounts.models import User
from webapp.runs.models import ALIVE, Run, State
from webapp.runs.services import run_create, run_launch

EXAMPLE = settings.BASE_DIR / "examples" / "countdown-entropy-target.toml"
TAG = "demo"


def demo_run_ensure(*, user: User) -> Run:
    """Return the demo run that waits or runs, or launch a new one."""
    under_way = Run.objects.active().filter(tags__contains=[TAG], state__in=[State.QUEUED, *ALIVE]).first()
    if under_way is not None:
        return under_way
    run = run_create(user=user, config=config.load(EXAMPLE), name="Demo: Countdown with a target entropy", tags=[TAG])
    return run_launch(run=run, user=user)
