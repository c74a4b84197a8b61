"""A real Celery worker process, killed, restarted and cut off from its broker while a run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from django.db import connection

from webapp import queue
from webapp.local.valkey import EmbeddedValkey
from webapp.runs import live
from webapp.runs.models import Event, Run
from workers import process

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-P", "threads", "-c", "2"]


@pytest.fixture
def start_worker(settings, tmp_path, fake):
    """`start_worker(REDIS_URL=…)` starts a worker over the test's database and folders."""
    started: list[subprocess.Popen] = []

    def start(**extra: str) -> subprocess.Popen:
        url = os.environ["DATABASE_URL"].replace("/isentrope?", f"/{connection.settings_dict['NAME']}?")
        env = {**os.environ, "DATABASE_URL": url, "ISENTROPE_RUNS": str(settings.RUNS_ROOT), **extra}
        env |= {"ISENTROPE_WORKER_NAME": "w1", "ISENTROPE_WORKER_SLOTS": "2"}
        with open(tmp_path / "worker.log", "ab") as log:
            command = [*COMMAND, "--without-gossip", "--without-mingle", "-l", "INFO"]
            worker = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()
        worker.wait()
    print((tmp_path / "worker.log").read_text()[-8000:])


def wait(condition, *, seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def reached(run: Run, step: int) -> bool:
    run.refresh_from_db()
    return run.step >= step


def assert_every_event_is_stored(run: Run) -> None:
    lines = run.folder.events.read_bytes().splitlines()
    assert list(Event.objects.filter(run=run).values_list("seq", flat=True)) == list(range(1, len(lines) + 1))


def test_kill_9_of_the_worker_and_doubled_rings_start_one_trainer_and_lose_no_event(start_worker, fake, new_run, state):
    fake(step=0.1)
    worker = start_worker()
    run = new_run(steps=80)
    for _ in range(5):
        queue.ring(queue.SCHEDULE)
    wait(lambda: reached(run, 2))
    assert len(list(process.members(run.pk, 1))) == 1
    pid = run.pid
    worker.kill()
    worker.wait()
    size = run.folder.events.stat().st_size
    wait(lambda: run.folder.events.stat().st_size > size + 500)
    assert psutil.Process(pid).is_running()

    start_worker()
    for _ in range(5):
        queue.ring(queue.SCHEDULE)
    wait(lambda: state(run) == "finished")
    run.refresh_from_db()
    assert (run.pid, run.attempt) == (pid, 1)
    assert_every_event_is_stored(run)


def test_a_restart_of_valkey_during_a_run_loses_nothing(start_worker, fake, new_run, state, tmp_path):
    fake(step=0.1)
    server = EmbeddedValkey(tmp_path / "valkey", volatile=True)
    server.start()
    try:
        run = new_run(steps=60)
        start_worker(REDIS_URL=server.url)
        wait(lambda: reached(run, 2))
        server.stop()
        target = run.step + 8
        wait(lambda: reached(run, target))
        server.start()
        import redis

        with redis.Redis.from_url(server.url) as client:
            wait(lambda: client.exists(live.stream(run.pk)))
        wait(lambda: state(run) == "finished")
        assert_every_event_is_stored(run)
    finally:
        server.stop()


def test_a_worker_told_to_take_its_runs_along_leaves_them_resumable(start_worker, fake, new_run, state):
    fake(step=0.1)
    run = new_run(steps=10_000)
    worker = start_worker(ISENTROPE_STOP_RUNS_ON_EXIT="1")
    wait(lambda: reached(run, 2))
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)
    run.refresh_from_db()
    assert run.state == "interrupted"
    assert run.resumable
    assert not list(process.members(run.pk, 1))


def test_a_worker_that_leaves_by_itself_leaves_its_runs_running(start_worker, fake, new_run, state):
    fake(step=0.1)
    run = new_run(steps=10_000)
    worker = start_worker()
    wait(lambda: reached(run, 2))
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)
    assert len(list(process.members(run.pk, 1))) == 1
    assert state(run) == "running"
