"""Verbs on runs: what each changes, what it refuses, and who may."""

from __future__ import annotations

import json

import pytest
from auditlog.models import LogEntry
from django.core.exceptions import PermissionDenied, ValidationError

from trainer.config import RunConfig, load
from webapp.runs.models import Checkpoint, Run, State
from webapp.runs.services import (
    run_archive,
    run_create,
    run_delete,
    run_duplicate,
    run_kill,
    run_launch,
    run_request_stop,
    run_resume,
    run_steer,
    run_unarchive,
)

pytestmark = pytest.mark.django_db

KNOBS = {
    "temperature": {"value": 1.0, "low": 0.1, "high": 2.0},
    "target_entropy": {"value": 0.5, "low": 0.0, "high": None},
}
ACTIONS = [run_launch, run_request_stop, run_kill, run_resume, run_archive, run_unarchive, run_delete]


@pytest.fixture
def draft(alice):
    return run_create(user=alice, config=load({"optimiser": {"steps": 7}}), tags=["a", " a ", "", "b"])


def in_state(run: Run, state: State, **fields) -> Run:
    Run.objects.filter(pk=run.pk).update(state=state, **fields)
    run.refresh_from_db()
    return run


def kinds(run: Run) -> list[str]:
    return [request.kind for request in run.requests.all()]


def sentence(caught) -> str:
    return " ".join(caught.value.messages)


def test_a_server_that_nobody_declared_is_refused_when_the_run_would_start(alice, settings):
    draft = run_create(user=alice, config=load({"sampling": {"server": {"enabled": True, "address": "gpu7:7000"}}}))
    with pytest.raises(ValidationError) as caught:
        run_launch(run=draft, user=alice)
    assert "sampling.server.address: gpu7:7000 is no rollout server that runs may use" in sentence(caught)
    assert "ISENTROPE_SERVER_HOSTS" in sentence(caught)
    draft.refresh_from_db()
    assert draft.state == State.DRAFT
    settings.SERVER_HOSTS = ["gpu7"]
    assert run_launch(run=draft, user=alice).state == State.QUEUED

    settings.SERVER_HOSTS = []
    Checkpoint.objects.create(run=draft, attempt=1, step=3, path="checkpoints/step-00000003", bytes=1)
    ended = in_state(draft, State.STOPPED, attempt=1)
    with pytest.raises(ValidationError, match="leave the address empty"):
        run_resume(run=ended, user=alice)


def test_create_makes_a_draft_and_writes_nothing(draft, settings):
    assert (draft.state, draft.task, draft.objective, draft.total_steps) == ("draft", "countdown", "grpo", 7)
    assert draft.tags == ["a", "b"]
    assert draft.name.startswith("countdown grpo ")
    assert not settings.RUNS_ROOT.exists()


def test_create_takes_the_name_given_then_the_config_s(alice):
    config = load({"name": "from config"})
    assert run_create(user=alice, config=config).name == "from config"
    assert run_create(user=alice, config=config, name="given").name == "given"


def test_launch_writes_the_config_and_queues(draft, alice):
    run = run_launch(run=draft, user=alice)
    assert run.state == "queued"
    assert run.queued_at
    assert RunConfig.model_validate(json.loads(run.folder.config.read_text())).optimiser.steps == 7
    assert kinds(run) == ["launch"]
    assert [path.name for path in run.folder.path.iterdir()] == ["config.json"]


def test_launch_happens_once(draft, alice):
    run_launch(run=draft, user=alice)
    with pytest.raises(ValidationError):
        run_launch(run=draft, user=alice)


def test_launch_says_when_the_folder_cannot_be_written(draft, alice, settings, tmp_path):
    (tmp_path / "file").write_text("")
    settings.RUNS_ROOT = tmp_path / "file"
    with pytest.raises(ValidationError) as caught:
        run_launch(run=draft, user=alice)
    assert "cannot be written" in sentence(caught)
    draft.refresh_from_db()
    assert draft.state == "draft"


def test_stop_takes_a_queued_run_out_of_the_queue(draft, alice):
    run_launch(run=draft, user=alice)
    assert run_request_stop(run=draft, user=alice).state == "draft"
    assert run_launch(run=draft, user=alice).state == "queued"


def test_stop_of_a_queued_resume_can_be_resumed_again(draft, alice):
    in_state(draft, State.QUEUED, attempt=1)
    assert run_request_stop(run=draft, user=alice).state == "stopped"


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_stop_asks_the_trainer(draft, alice, state):
    in_state(draft, state)
    run = run_request_stop(run=draft, user=alice)
    assert run.state == "stopping"
    first = run.stop_requested_at
    assert run_request_stop(run=run, user=alice).stop_requested_at == first
    assert kinds(run) == ["stop", "stop"]


def test_kill_leaves_both_requests(draft, alice):
    in_state(draft, State.RUNNING)
    run = run_kill(run=draft, user=alice)
    assert run.state == "stopping"
    assert run.kill_requested_at
    assert run.stop_requested_at


@pytest.mark.parametrize("state", [State.DRAFT, State.FINISHED, State.FAILED])
def test_there_is_nothing_to_stop(draft, alice, state):
    in_state(draft, state)
    with pytest.raises(ValidationError):
        run_request_stop(run=draft, user=alice)
    with pytest.raises(ValidationError):
        run_kill(run=draft, user=alice)


@pytest.mark.parametrize("state", [State.STOPPED, State.INTERRUPTED, State.FAILED])
def test_resume_queues_a_new_attempt_and_forgets_the_failure(draft, alice, state):
    in_state(draft, state, attempt=1, failure="bad", failure_log="log", failure_field="x")
    Checkpoint.objects.create(run=draft, attempt=1, step=5, path="checkpoints/step-00000005")
    run = run_resume(run=draft, user=alice)
    assert run.state == "queued"
    assert (run.failure, run.failure_log, run.failure_field) == ("", "", "")
    assert run.stop_requested_at is None
    assert run.requests.get().data == {"attempt": 2}


@pytest.mark.parametrize(
    ("state", "words"),
    [(State.RUNNING, "running"), (State.FINISHED, "duplicate"), (State.STOPPED, "no complete checkpoint")],
)
def test_resume_says_why_not(draft, alice, state, words):
    in_state(draft, state)
    with pytest.raises(ValidationError) as caught:
        run_resume(run=draft, user=alice)
    assert words in sentence(caught)


def test_steer_raises_the_sequence_and_keeps_other_knobs(draft, alice):
    in_state(draft, State.RUNNING, knobs=KNOBS, step=3)
    run_steer(run=draft, user=alice, knobs={"temperature": 0.5})
    run = run_steer(run=draft, user=alice, knobs={"target_entropy": 1})
    assert run.control_knobs == {"temperature": 0.5, "target_entropy": 1.0}
    assert run.control_seq == 2
    request = run.requests.last()
    assert (request.step, request.data) == (3, {"knobs": {"target_entropy": 1.0}, "control_seq": 2})


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"nonsense": 1}, "has no knob “nonsense”; it has target_entropy, temperature"),
        ({"temperature": 3}, "must be between 0.1 and 2"),
        ({"target_entropy": -1}, "must be at least 0"),
        ({"temperature": float("nan")}, "finite"),
        ({"temperature": "1"}, "finite"),
        ({"temperature": True}, "finite"),
        ({}, "No knob"),
    ],
)
def test_steer_refuses_with_a_sentence_and_changes_nothing(draft, alice, knobs, words):
    in_state(draft, State.RUNNING, knobs=KNOBS)
    with pytest.raises(ValidationError) as caught:
        run_steer(run=draft, user=alice, knobs=knobs)
    assert words in sentence(caught)
    draft.refresh_from_db()
    assert (draft.control_seq, draft.control_knobs) == (0, {})


@pytest.mark.parametrize("state", [State.QUEUED, State.STOPPING, State.FINISHED])
def test_only_a_running_run_is_steered(draft, alice, state):
    in_state(draft, state, knobs=KNOBS)
    with pytest.raises(ValidationError):
        run_steer(run=draft, user=alice, knobs={"temperature": 0.5})


def test_duplicate_is_a_draft_with_the_same_config(draft, bob):
    copy = run_duplicate(run=draft, user=bob)
    assert (copy.state, copy.config, copy.parent, copy.owner) == ("draft", draft.config, draft, bob)
    assert draft.requests.get().data == {"copy": copy.pk}


def test_archive_and_back(draft, alice):
    run_archive(run=draft, user=alice)
    assert not Run.objects.active().exists()
    run_unarchive(run=draft, user=alice)
    assert Run.objects.active().get() == draft


@pytest.mark.parametrize("state", [State.QUEUED, State.STARTING, State.RUNNING, State.STOPPING])
def test_a_run_under_way_is_neither_archived_nor_deleted(draft, alice, state):
    in_state(draft, state)
    for action in (run_archive, run_delete):
        with pytest.raises(ValidationError):
            action(run=draft, user=alice)
    assert Run.objects.filter(pk=draft.pk, archived_at=None).exists()


def test_delete_frees_the_disk(draft, alice):
    run = in_state(run_launch(run=draft, user=alice), State.FINISHED)
    run.folder.rollouts.mkdir()
    run.folder.rollout_file(1).write_bytes(b"x" * 5000)
    size = 5000 + run.folder.config.stat().st_size
    assert run_delete(run=run, user=alice) == size
    assert not run.folder.path.exists()
    assert not Run.objects.exists()


def test_a_deleted_run_stays_in_the_audit_log(draft, alice):
    key = draft.pk
    run_delete(run=draft, user=alice)
    entry = LogEntry.objects.filter(object_pk=key, action=LogEntry.Action.DELETE).get()
    assert draft.name in entry.object_repr


def test_delete_keeps_copies(draft, alice):
    copy = run_duplicate(run=draft, user=alice)
    run_delete(run=draft, user=alice)
    copy.refresh_from_db()
    assert copy.parent is None


@pytest.mark.parametrize("action", ACTIONS)
def test_viewers_and_other_members_may_not_act(draft, bob, charlie, action):
    for user in (bob, charlie):
        with pytest.raises(PermissionDenied):
            action(run=draft, user=user)
    with pytest.raises(PermissionDenied):
        run_steer(run=draft, user=bob, knobs={"temperature": 0.5})


def test_viewers_may_not_create(charlie, draft):
    with pytest.raises(PermissionDenied):
        run_create(user=charlie, config=load({}))
    with pytest.raises(PermissionDenied):
        run_duplicate(run=draft, user=charlie)


def test_an_owner_who_became_a_viewer_may_not_act(draft, alice):
    alice.role = "viewer"
    alice.save()
    with pytest.raises(PermissionDenied):
        run_launch(run=draft, user=alice)


def test_maintainers_act_on_the_runs_of_others(draft, admin_user):
    assert run_launch(run=draft, user=admin_user).state == "queued"


def test_a_broker_that_is_away_does_not_stop_a_launch(draft, alice, monkeypatch, django_capture_on_commit_callbacks):
    from celery import Celery

    from webapp import queue

    away = Celery("away", broker="redis://127.0.0.1:1/0", set_as_current=False)
    away.conf.broker_transport_options = queue.GIVE_UP
    monkeypatch.setattr(queue, "_app", away)
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        run_launch(run=draft, user=alice)
    assert len(callbacks) == 2
    draft.refresh_from_db()
    assert draft.state == "queued"
