"""Supervision with a stand-in trainer: a real process, a real run folder, real rows, and seconds instead of minutes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from trainer.config import load
from webapp.runs.models import Run
from webapp.runs.services import run_create, run_launch
from workers import process
from workers.supervise import Supervisor

FAKE = Path(__file__).parents[1] / "fakes" / "fake_trainer.py"


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setenv("ISENTROPE_TRAINER", f"{sys.executable} {FAKE}")


@pytest.fixture
def fake(monkeypatch):
    """`fake(mode="deaf", step=0.1)` says how trainers started from now on behave."""

    def behave(*, mode: str = "normal", step: float = 0.02) -> None:
        monkeypatch.setenv("ISENTROPE_FAKE_MODE", mode)
        monkeypatch.setenv("ISENTROPE_FAKE_STEP", str(step))

    behave()
    return behave


@pytest.fixture
def new_run(alice):
    """`new_run(steps=20, gpus=0)` returns a launched run of Alice's; its processes end with the test."""
    made: list[Run] = []

    def create(*, steps: int = 20, gpus: int = 0, priority: int = 0, launch: bool = True) -> Run:
        config = load({"optimiser": {"steps": steps}, "resources": {"gpus": gpus}})
        run = run_create(user=alice, config=config)
        Run.objects.filter(pk=run.pk).update(priority=priority)
        made.append(run)
        return run_launch(run=run, user=alice) if launch else run

    yield create
    for run in made:
        for attempt in range(1, 4):
            process.kill_members(run.pk, attempt)


@pytest.fixture
def supervisor(valkey_server):
    return Supervisor("w1", slots=2)


@pytest.fixture
def until():
    """`until(supervisor, condition)` lets the supervisor work until the condition holds."""

    def wait(supervisor: Supervisor, condition, *, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            supervisor.wake()
            supervisor.look_at = supervisor.round_at = 0.0
            supervisor._safely_tick()
            time.sleep(0.02)

    return wait


@pytest.fixture
def state():
    """`state(run)` is what the row says now."""
    return lambda run: Run.objects.values_list("state", flat=True).get(pk=run.pk)
