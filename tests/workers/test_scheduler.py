"""Priority, then first come first served, then what fits; the others learn what they wait for."""

from __future__ import annotations

import pytest
from django.db.models.functions import Now

from webapp.runs.models import Gpu, Run, State, Worker
from workers.claim import end
from workers.scheduler import FRESH, ordinal, schedule

pytestmark = pytest.mark.django_db


@pytest.fixture
def worker():
    """`worker("w1", slots=1, gpus=4)` is a fresh worker."""

    def create(name: str = "w1", *, slots: int = 1, gpus: int = 0) -> Worker:
        worker = Worker.objects.create(name=name, host="h", slots=slots)
        Gpu.objects.bulk_create(Gpu(worker=worker, index=index) for index in range(gpus))
        return worker

    return create


def reason(run: Run) -> str:
    run.refresh_from_db()
    return run.waiting_reason


def test_first_come_first_served(worker, new_run):
    worker()
    runs = [new_run() for _ in range(3)]
    assert schedule() == [runs[0].pk]
    assert reason(runs[1]) == "waiting for a CPU slot: 0 of 1 free"
    assert reason(runs[2]) == "2nd in the queue"
    assert schedule() == []


def test_priority_goes_first(worker, new_run):
    worker()
    new_run()
    urgent = new_run(priority=5)
    assert schedule() == [urgent.pk]


def test_without_a_fresh_worker_nothing_starts(worker, new_run):
    stale = worker()
    Worker.objects.filter(pk=stale.pk).update(heartbeat_at=Now() - 2 * FRESH)
    run = new_run()
    assert schedule() == []
    assert reason(run) == "waiting for a worker: none is running"


def test_gpus_are_leased_and_freed(worker, new_run):
    worker(gpus=5)
    first, second = new_run(gpus=4), new_run(gpus=2)
    assert schedule() == [first.pk]
    assert first.gpus.count() == 4
    assert reason(second) == "waiting for 2 GPUs: 1 of 5 free"
    first.refresh_from_db()
    end(first.pk, first.lease_token, State.FINISHED)
    assert first.gpus.count() == 0
    assert schedule() == [second.pk]


def test_a_small_run_does_not_starve_a_large_one(worker, new_run):
    worker(gpus=4)
    new_run(gpus=2)
    schedule()
    large, small = new_run(gpus=4), new_run(gpus=1)
    assert schedule() == []
    assert reason(large) == "waiting for 4 GPUs: 2 of 4 free"
    assert reason(small) == "2nd in the queue"


def test_a_run_nobody_can_hold_blocks_nobody(worker, new_run):
    worker(gpus=2)
    huge, small = new_run(gpus=8), new_run(gpus=1)
    assert schedule() == [small.pk]
    assert reason(huge) == "waiting for 8 GPUs: the largest worker has 2"


def test_cpu_and_gpu_runs_do_not_wait_for_each_other(worker, new_run):
    worker(gpus=1)
    gpu, later, cpu = new_run(gpus=1), new_run(gpus=1), new_run()
    assert set(schedule()) == {gpu.pk, cpu.pk}
    assert reason(later) == "waiting for 1 GPU: 0 of 1 free"


def test_gpus_of_one_run_are_on_one_worker(worker, new_run):
    worker("w1", gpus=1)
    worker("w2", gpus=2)
    two, one = new_run(gpus=2), new_run(gpus=1)
    assert set(schedule()) == {two.pk, one.pk}
    assert {gpu.worker.name for gpu in two.gpus.all()} == {"w2"}
    assert {gpu.worker.name for gpu in one.gpus.all()} == {"w1"}


def test_a_suspect_gpu_is_not_leased(worker, new_run):
    worker(gpus=1)
    Gpu.objects.update(suspect=True)
    new_run(gpus=1)
    assert schedule() == []


def test_the_emptier_worker_takes_the_next_cpu_run(worker, new_run):
    worker("w1", slots=1)
    worker("w2", slots=2)
    runs = [new_run() for _ in range(3)]
    assert len(schedule()) == 3
    for run in runs:
        run.refresh_from_db()
    assert [run.lease_worker for run in runs].count("w2") == 2


@pytest.mark.parametrize(
    ("number", "word"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (22, "22nd")]
)
def test_ordinals(number, word):
    assert ordinal(number) == word
