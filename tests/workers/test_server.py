"""A run whose trainer starts a rollout server: whoever is killed, nothing of it is left."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from trainer.config import load
from trainer.rollout.server.launcher import Card, Launcher
from webapp.runs.services import run_create, run_launch
from workers import process
from workers.supervise import Supervisor

pytestmark = pytest.mark.django_db

SERVED = {
    "optimiser": {"steps": 100_000},
    "sampling": {
        "prompts_per_step": 2,
        "samples_per_prompt": 2,
        "max_completion_tokens": 4,
        "server": {"enabled": True},
    },
    "evaluation": {"every_steps": 0},
    "checkpoint": {"every_steps": 1000},
}


def left(run_id: str, card: Card) -> list[psutil.Process]:
    """Return what is left of an attempt; what is dead and waits for init to notice does not count."""
    found = [*process.members(run_id, 1), *([psutil.Process(card.pid)] if psutil.pid_exists(card.pid) else [])]
    return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]


def test_whoever_is_killed_the_run_goes_on_or_ends_with_nothing_left(supervisor, until, alice, monkeypatch, state):
    monkeypatch.delenv("ISENTROPE_TRAINER")
    run = run_create(user=alice, config=load(SERVED))
    run_launch(run=run, user=alice)

    def goes_on(tending: Supervisor) -> None:
        """Tend the run until it has taken three more steps."""
        wanted = run.step + 3

        def there() -> bool:
            run.refresh_from_db()
            assert run.state in ("queued", "starting", "running"), f"{run.failure}\n{run.failure_log}"
            return run.state == "running" and run.step >= wanted

        until(tending, there, seconds=150)

    goes_on(supervisor)
    launcher = Launcher(load(run.config), run.folder)
    first = launcher.card()
    assert os.getsid(first.pid) == first.pid, "a session of its own"
    assert process.find(run).pid == run.pid, "the server is not taken for the trainer"

    os.kill(first.pid, signal.SIGKILL)  # the server: the trainer starts another and asks again
    goes_on(supervisor)
    assert "is lost" in run.folder.log.read_text()
    assert not psutil.pid_exists(first.pid), "reaped"

    successor = Supervisor("w1", slots=2)  # the worker: its successor finds the run
    goes_on(successor)

    second = launcher.card()
    os.kill(run.pid, signal.SIGKILL)  # the trainer: the attempt ends, and its server with it
    until(successor, lambda: state(run) == "interrupted", seconds=60)
    until(successor, lambda: not left(run.pk, second), seconds=20)
