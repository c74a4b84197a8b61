"""A run from the queue to its recorded end, and everything that can go wrong in between."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from django.db import OperationalError, connection

from trainer.events import Control
from webapp.runs.models import Event, Run, Watch, Worker
from webapp.runs.services import run_kill, run_request_stop, run_resume, run_steer
from webapp.runs.watching import forget, watch
from workers import attempt, claim, process
from workers.supervise import Supervisor

pytestmark = pytest.mark.django_db


def seqs(run: Run) -> list[int]:
    return list(Event.objects.filter(run=run).order_by("seq").values_list("seq", flat=True))


def whole(run: Run) -> list[int]:
    """Return the numbers of every line of the file."""
    return list(range(1, len(run.folder.events.read_bytes().splitlines()) + 1))


def running(run: Run, *, step: int = 1) -> bool:
    run.refresh_from_db()
    return run.state == "running" and run.step >= step


def test_a_launched_run_trains_to_its_end(supervisor, until, new_run, fake, state):
    run = new_run(steps=12)
    until(supervisor, lambda: state(run) == "finished")
    run.refresh_from_db()
    assert (run.step, run.attempt, run.failure) == (12, 1, "")
    assert seqs(run) == whole(run)
    assert run.summary["reward/mean"] == 1.0
    assert run.lease_expires_at is None
    assert run.disk_bytes > 0
    assert [checkpoint.step for checkpoint in run.checkpoints.all()] == [12, 10, 5]
    assert "attempt 1 from step 0" in run.folder.log.read_text()


def test_a_trainer_on_the_cpu_comes_after_pages_and_services(supervisor, until, new_run, fake):
    fake(step=0.3)
    run = new_run(steps=100)
    until(supervisor, lambda: running(run))
    assert os.getpriority(os.PRIO_PROCESS, run.pid) == process.NICE > os.getpriority(os.PRIO_PROCESS, 0)
    session = Path(f"/proc/{run.pid}/autogroup")
    assert not session.exists() or session.read_text().split()[-1] == str(process.NICE)


def test_two_slots_hold_two_runs(supervisor, until, new_run, fake, state):
    fake(step=0.3)
    runs = [new_run(steps=100) for _ in range(3)]
    until(supervisor, lambda: sum(running(run) for run in runs) == 2)
    supervisor._round()
    assert state(runs[2]) == "queued"
    runs[2].refresh_from_db()
    assert runs[2].waiting_reason == "waiting for a CPU slot: 0 of 2 free"


def test_a_steered_knob_arrives_and_comes_back_as_an_event(supervisor, until, new_run, fake, alice):
    fake(step=0.1)
    run = new_run(steps=1000)
    until(supervisor, lambda: running(run))
    run_steer(run=run, user=alice, knobs={"temperature": 0.7})
    until(supervisor, lambda: run.events.filter(type="knob").exists())
    run.refresh_from_db()
    assert run.knobs["temperature"]["value"] == 0.7
    assert run.events.get(type="knob").data["control_seq"] == 1


def test_stop_ends_with_a_checkpoint(supervisor, until, new_run, fake, alice, state):
    fake(step=0.05)
    run = new_run(steps=1000)
    until(supervisor, lambda: running(run, step=2))
    run_request_stop(run=run, user=alice)
    assert state(run) == "stopping"
    until(supervisor, lambda: state(run) == "stopped")
    run.refresh_from_db()
    assert run.resumable
    assert run.failure == ""


def test_stop_before_the_trainer_starts_starts_none(supervisor, until, new_run, fake, alice, state):
    run = new_run()
    supervisor._beat()
    supervisor._round()
    assert state(run) == "starting"
    run_request_stop(run=run, user=alice)
    until(supervisor, lambda: state(run) == "stopped")
    assert not run.folder.log.exists()


def test_a_trainer_that_does_not_listen_is_killed_with_all_it_started(
    supervisor, until, new_run, fake, alice, state, monkeypatch
):
    fake(mode="deaf", step=0.05)
    monkeypatch.setattr(attempt, "STOP_GRACE", 0.3)
    monkeypatch.setattr(attempt, "TERM_GRACE", 0.3)
    run = new_run(steps=10_000)
    until(supervisor, lambda: running(run))
    run_request_stop(run=run, user=alice)
    until(supervisor, lambda: state(run) == "interrupted")
    run.refresh_from_db()
    assert "did not stop when asked" in run.failure
    assert not list(process.members(run.pk, 1))


def test_kill_does_not_wait_for_the_grace(supervisor, until, new_run, fake, alice, state):
    run = new_run(steps=10_000)
    until(supervisor, lambda: running(run))
    run_kill(run=run, user=alice)
    until(supervisor, lambda: state(run) == "stopped", seconds=10)


def test_a_failure_names_cause_and_field_with_the_log(supervisor, until, new_run, fake, state):
    fake(mode="fail")
    run = new_run()
    until(supervisor, lambda: state(run) == "failed")
    run.refresh_from_db()
    assert (run.failure, run.failure_field) == ("the reward is bad; mend it", "rewards.0")
    assert "attempt 1 from step 0" in run.failure_log


def test_a_trainer_that_never_got_going_failed(supervisor, until, new_run, fake, state):
    fake(mode="silent")
    run = new_run()
    until(supervisor, lambda: state(run) == "failed")
    run.refresh_from_db()
    assert "code 3" in run.failure
    assert "no module named nonsense" in run.failure_log


def test_kill_9_of_the_trainer_is_interrupted_and_resumes(supervisor, until, new_run, fake, alice, state):
    fake(step=0.05)
    run = new_run(steps=60)  # so many that the end is far when the seventh has been noticed, on a busy machine, too
    until(supervisor, lambda: running(run, step=7))
    os.kill(run.pid, signal.SIGKILL)
    until(supervisor, lambda: state(run) == "interrupted")
    run.refresh_from_db()
    assert run.resumable
    newest = max(int(path.name[5:]) for path in run.folder.checkpoints.iterdir() if (path / "manifest.json").exists())
    assert 5 <= newest <= run.step
    assert "signal 9" in run.failure

    fake(step=0.01)
    run_resume(run=run, user=alice)
    until(supervisor, lambda: state(run) == "finished")
    run.refresh_from_db()
    assert (run.attempt, run.step, run.failure) == (2, 60, "")
    assert run.events.get(type="started", attempt=2).data["resume_step"] == newest
    assert seqs(run) == whole(run)
    assert len(run.spark_reward) <= 40
    assert run.spark_reward == sorted(run.spark_reward)


def test_a_line_torn_by_the_crash_is_lost_and_nothing_else(supervisor, until, new_run, fake, alice, state):
    fake(mode="torn")
    run = new_run()
    until(supervisor, lambda: state(run) == "interrupted")
    assert seqs(run) == [1, 2, 3]


def test_processes_left_behind_are_ended(supervisor, until, new_run, fake, state):
    fake(mode="parent", step=0.1)
    run = new_run(steps=3)
    until(supervisor, lambda: len(list(process.members(run.pk, 1))) == 2)
    until(supervisor, lambda: state(run) == "finished")
    assert not list(process.members(run.pk, 1))


def test_a_restarted_worker_goes_on_with_the_same_process(supervisor, until, new_run, fake, state):
    fake(step=0.05)
    run = new_run(steps=40)
    until(supervisor, lambda: running(run, step=3))
    pid, token = run.pid, run.lease_token
    restarted = Supervisor("w1", slots=2)
    until(restarted, lambda: state(run) == "finished")
    run.refresh_from_db()
    assert (run.pid, run.lease_token, run.attempt) == (pid, token, 1)
    assert seqs(run) == whole(run)


def test_a_process_spawned_but_not_written_down_is_found_again(supervisor, until, new_run, fake, state):
    fake(step=0.05)
    run = new_run(steps=40)
    until(supervisor, lambda: running(run, step=3))
    pid = run.pid
    Run.objects.filter(pk=run.pk).update(pid=None, pid_started=None, boot_id="")
    restarted = Supervisor("w1", slots=2)
    until(restarted, lambda: state(run) == "finished")
    run.refresh_from_db()
    assert run.pid == pid


def test_a_run_that_ended_while_no_worker_looked_is_recorded(supervisor, until, new_run, fake, state):
    run = new_run(steps=5)
    until(supervisor, lambda: running(run))
    supervisor.attempts[run.pk].child.wait(10)
    assert state(run) == "running"
    until(Supervisor("w1", slots=2), lambda: state(run) == "finished")
    assert seqs(run) == whole(run)


def test_after_another_boot_the_run_is_interrupted(supervisor, until, new_run, fake, state):
    fake(step=0.1)
    run = new_run(steps=1000)
    until(supervisor, lambda: running(run))
    Run.objects.filter(pk=run.pk).update(boot_id="another boot")
    until(Supervisor("w1", slots=2), lambda: state(run) == "interrupted")


def test_a_reused_pid_is_not_taken_for_the_trainer(supervisor, until, new_run, fake, state):
    fake(step=0.1)
    run = new_run(steps=1000)
    until(supervisor, lambda: running(run))
    Run.objects.filter(pk=run.pk).update(pid=os.getpid(), pid_started=time.time() - 10**6)
    until(Supervisor("w1", slots=2), lambda: state(run) == "interrupted")


def test_after_a_pause_the_leases_are_read_before_anything_is_written(supervisor, until, new_run, fake, monkeypatch):
    fake(step=0.05)
    run = new_run(steps=1000)
    until(supervisor, lambda: running(run))
    supervisor.beat_at = supervisor.look_at = supervisor.round_at = claim.boot_seconds() + 1000
    pause = claim.LEASE.total_seconds()
    monkeypatch.setattr("workers.claim.boot_seconds", lambda: time.monotonic() + 10**6 + pause)
    statements: list[str] = []

    def note(execute, sql, params, many, context):
        statements.append(sql)
        return execute(sql, params, many, context)

    time.sleep(0.2)  # the trainer goes on: there is something to write
    with connection.execute_wrapper(note):
        supervisor._safely_tick()
    reads = [sql.startswith("SELECT") and "lease_worker" in sql and "FOR" not in sql for sql in statements]
    writes = [sql.startswith(("UPDATE", "INSERT")) for sql in statements]
    assert any(writes)
    assert reads.index(True) < writes.index(True)


def test_a_pause_in_the_middle_of_tending_writes_nothing(supervisor, until, new_run, fake, monkeypatch):
    fake(step=0.05)
    run = new_run(steps=1000)
    until(supervisor, lambda: running(run))
    before = Run.objects.get(pk=run.pk).events_offset
    time.sleep(0.2)
    late = time.monotonic() + 10**6
    monkeypatch.setattr("workers.claim.boot_seconds", lambda: late)
    with pytest.raises(claim.Paused):
        supervisor.attempts[run.pk].pump()
    assert Run.objects.get(pk=run.pk).events_offset == before


def test_who_lost_the_lease_to_a_new_attempt_ends_only_the_old_processes(supervisor, until, new_run, fake):
    fake(step=0.1)
    run = new_run(steps=1000)
    until(supervisor, lambda: running(run))
    assert list(process.members(run.pk, 1))
    Run.objects.filter(pk=run.pk).update(lease_worker="w2", lease_token=run.lease_token + 1, attempt=2)
    supervisor.look_at = 0.0
    supervisor._safely_tick()
    assert run.pk not in supervisor.attempts
    assert not list(process.members(run.pk, 1))
    run.refresh_from_db()
    assert (run.state, run.lease_worker) == ("running", "w2")


def test_who_lost_the_lease_of_the_same_attempt_leaves_the_trainer_alone(supervisor, until, new_run, fake):
    fake(step=0.1)
    run = new_run(steps=1000)
    until(supervisor, lambda: running(run))
    Run.objects.filter(pk=run.pk).update(lease_worker="w2", lease_token=run.lease_token + 1)
    supervisor.look_at = 0.0
    supervisor._safely_tick()
    assert run.pk not in supervisor.attempts
    assert list(process.members(run.pk, 1))


def test_another_worker_of_the_host_adopts_a_run_whose_lease_expired(supervisor, until, new_run, fake, state):
    fake(step=0.05)
    run = new_run(steps=60)
    until(supervisor, lambda: running(run, step=2))
    Run.objects.filter(pk=run.pk).update(lease_expires_at="2020-01-01T00:00Z")
    other = Supervisor("w2", slots=0)
    other.in_touch_since -= claim.LEASE.total_seconds()
    until(other, lambda: state(run) == "finished")
    run.refresh_from_db()
    assert (run.lease_worker, run.attempt) == ("w2", 1)
    assert seqs(run) == whole(run)


def test_another_worker_interrupts_a_run_whose_host_is_gone(supervisor, until, new_run, fake, state):
    fake(step=0.05)
    run = new_run(steps=1000)
    until(supervisor, lambda: running(run, step=6))
    Run.objects.filter(pk=run.pk).update(lease_expires_at="2020-01-01T00:00Z", boot_id="gone")
    other = Supervisor("w2", slots=0)
    other.in_touch_since -= claim.LEASE.total_seconds()
    until(other, lambda: state(run) == "interrupted")
    run.refresh_from_db()
    assert run.resumable


def test_leases_that_lapsed_while_the_database_was_away_are_not_taken_at_once(supervisor, until, new_run, fake):
    fake(step=0.1)
    run = new_run(steps=1000)
    until(supervisor, lambda: running(run))
    Run.objects.filter(pk=run.pk).update(lease_expires_at="2020-01-01T00:00Z")
    Supervisor("w2", slots=0).reap()
    run.refresh_from_db()
    assert run.lease_worker == "w1"
    supervisor._beat()
    run.refresh_from_db()
    assert run.lease_expires_at.year > 2020


def test_the_database_may_go_away_and_come_back(supervisor, until, new_run, fake, state):
    fake(step=0.05)
    run = new_run(steps=20)
    until(supervisor, lambda: running(run))

    def away(execute, sql, params, many, context):
        raise OperationalError("server closed the connection")

    closed = connection.close
    connection.close = lambda: None  # the test's transaction lives in this connection
    try:
        with connection.execute_wrapper(away):
            supervisor.look_at = 0.0
            assert not supervisor._safely_tick()
            supervisor.attempts[run.pk].child.wait(10)
    finally:
        connection.close = closed
    until(supervisor, lambda: state(run) == "finished")
    assert seqs(run) == whole(run)


def test_one_run_that_cannot_be_tended_does_not_hold_up_others(supervisor, until, new_run, fake, state, monkeypatch):
    broken, good = new_run(steps=5), new_run(steps=5)
    tend = attempt.Attempt.tend

    def sometimes(self, run):
        if run.pk == broken.pk:
            raise RuntimeError("a bug")
        tend(self, run)

    monkeypatch.setattr(attempt.Attempt, "tend", sometimes)
    until(supervisor, lambda: state(good) == "finished")
    assert state(broken) == "starting"


def test_a_folder_that_vanished_fails_the_run_with_a_sentence(supervisor, until, new_run, fake, state):
    run = new_run()
    run.folder.config.unlink()
    run.folder.path.rmdir()
    until(supervisor, lambda: state(run) == "failed")
    run.refresh_from_db()
    assert "could not be started" in run.failure


def test_the_worker_shows_its_heartbeat(supervisor):
    supervisor._beat()
    first = Worker.objects.get(name="w1").heartbeat_at
    supervisor._beat()
    worker = Worker.objects.get(name="w1")
    assert worker.heartbeat_at > first
    assert worker.slots == 2


def test_the_trainer_learns_no_secret_of_the_web_app(supervisor, until, new_run, fake, monkeypatch):
    for name in ("DATABASE_URL", "REDIS_URL", "ISENTROPE_SECRET_KEY", "ISENTROPE_OIDC_CLIENT_SECRET", "SOME_PASSWORD"):
        monkeypatch.setenv(name, os.environ.get(name, "planted"))
    monkeypatch.setenv("HF_HOME", "/models")
    fake(step=0.2)
    run = new_run(steps=100)
    until(supervisor, lambda: running(run))
    found = next(process.members(run.pk, 1)).environ()
    assert found["HF_HOME"] == "/models"
    assert found["OMP_NUM_THREADS"] == "1"
    assert not {name for name in found if "SECRET" in name or "PASSWORD" in name or name.endswith("_URL")}


def test_the_control_file_of_a_new_attempt_does_not_stop_it(supervisor, until, new_run, fake, alice, state):
    fake(step=0.05)
    run = new_run(steps=30)
    until(supervisor, lambda: running(run, step=6))
    run_request_stop(run=run, user=alice)
    until(supervisor, lambda: state(run) == "stopped")
    assert Control.model_validate_json(run.folder.control.read_bytes()).stop
    run_resume(run=run, user=alice)
    until(supervisor, lambda: state(run) == "finished")


def test_what_viewers_choose_reaches_the_control_file_and_leaves_it(supervisor, until, new_run, fake):
    fake(step=0.05)
    run = new_run(steps=1000)
    until(supervisor, lambda: running(run, step=2))

    def chosen() -> list[int]:
        return Control.model_validate_json(run.folder.control.read_bytes()).watch

    watch(run.pk, "a page", 5)
    watch(run.pk, "another", 2)
    until(supervisor, lambda: chosen() == [5, 2])
    forget("a page")
    until(supervisor, lambda: chosen() == [2])
    Watch.objects.update(expires_at=run.created_at)
    until(supervisor, lambda: chosen() == [])
