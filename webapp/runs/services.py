"""Verbs on runs. Each is one transaction, checks who may, writes a Request row and rings the workers after commit.

Raises PermissionDenied for people who may not, ValidationError (one sentence with the fix) for what cannot be done.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from functools import partial
from typing import Any

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.utils import timezone

from trainer.config import RunConfig, leased_gpus
from webapp import queue
from webapp.accounts.models import User
from webapp.runs import live, server_hosts
from webapp.runs.files import folder_bytes, write_atomically
from webapp.runs.models import ENDED, Request, Run, State, Sweep, new_id


def run_create(
    *,
    user: User,
    config: RunConfig,
    name: str | None = None,
    parent: Run | None = None,
    tags: Sequence[str] = (),
    sweep: Sweep | None = None,
    member: dict[str, Any] | None = None,
) -> Run:
    """Create a draft; nothing is written to disk before its launch."""
    _require(user, "launch")
    run_id = new_id()
    objective, task = config.objective.preset, config.task.type  # type: ignore[attr-defined]  # a union made at run time
    return Run.objects.create(
        id=run_id,
        name=(name or config.name or f"{task} {objective} {run_id[:4]}")[:120],
        tags=list(dict.fromkeys(tag.strip()[:40] for tag in tags if tag.strip())),
        owner=user,
        parent=parent,
        sweep=sweep,
        member=member or {},
        config=config.model_dump(mode="json"),
        objective=objective[:80],
        task=task[:80],
        model=config.model.source,
        gpus_wanted=leased_gpus(config),
        total_steps=config.optimiser.steps,
    )


@transaction.atomic
def run_launch(*, run: Run, user: User) -> Run:
    """Write config.json and put the draft into the queue."""
    run = _lock(run, user)
    if run.state != State.DRAFT:
        raise ValidationError(f"This run was launched before and is {run.state}; duplicate it to run it again.")
    try:
        run.folder.path.mkdir(parents=True, exist_ok=True)
        write_atomically(run.folder.config, json.dumps(run.config, indent=1))
    except OSError as error:
        raise ValidationError(
            f"The run folder cannot be written ({error.strerror}); free disk space or ask an admin."
        ) from error
    _enqueue(run)
    _record(run, user, "launch")
    return run


@transaction.atomic
def run_resume(*, run: Run, user: User) -> Run:
    """Queue a new attempt from the last complete checkpoint; the lease of the old attempt ends with its next claim."""
    run = _lock(run, user)
    if not run.resumable:
        raise ValidationError(_why_not_resumable(run))
    run.failure = run.failure_field = run.failure_log = ""
    run.ended_at = run.stop_requested_at = run.kill_requested_at = None
    _enqueue(run, "failure", "failure_field", "failure_log", "ended_at", "stop_requested_at", "kill_requested_at")
    _record(run, user, "resume", {"attempt": run.attempt + 1})
    return run


@transaction.atomic
def run_request_stop(*, run: Run, user: User) -> Run:
    """Ask the trainer to finish its step, write a checkpoint and end; a queued run just leaves the queue."""
    run = _lock(run, user)
    if run.state == State.QUEUED:
        # Before its first attempt it is a draft again; later there is something to resume.
        run.state = State.STOPPED if run.attempt else State.DRAFT
        run.waiting_reason, run.queued_at = "", None
        run.save(update_fields=["state", "waiting_reason", "queued_at"])
    elif run.alive:
        run.state = State.STOPPING
        run.stop_requested_at = run.stop_requested_at or timezone.now()
        run.save(update_fields=["state", "stop_requested_at"])
    else:
        raise ValidationError(f"There is nothing to stop: the run is {run.state}.")
    _record(run, user, "stop")
    return run


@transaction.atomic
def run_kill(*, run: Run, user: User) -> Run:
    """End a trainer that does not stop when asked; its steps since the last checkpoint are lost."""
    run = _lock(run, user)
    if not run.alive:
        raise ValidationError(f"There is nothing to end: the run is {run.state}.")
    run.state = State.STOPPING
    run.kill_requested_at = timezone.now()
    run.stop_requested_at = run.stop_requested_at or run.kill_requested_at
    run.save(update_fields=["state", "kill_requested_at", "stop_requested_at"])
    _record(run, user, "kill")
    return run


@transaction.atomic
def run_steer(*, run: Run, user: User, knobs: dict[str, float]) -> Run:
    """Request new values of steerable knobs; the trainer takes them before its next step."""
    run = _lock(run, user)
    if not run.alive or run.state == State.STOPPING:
        raise ValidationError(f"Only a running run can be steered; this one is {run.state}.")
    if not knobs:
        raise ValidationError("No knob was given; choose one and set its value.")
    wanted = {name: _knob_value(run, name, value) for name, value in knobs.items()}
    run.control_knobs = {**run.control_knobs, **wanted}
    run.control_seq += 1
    run.save(update_fields=["control_knobs", "control_seq"])
    _record(run, user, "steer", {"knobs": wanted, "control_seq": run.control_seq})
    return run


@transaction.atomic
def run_duplicate(*, run: Run, user: User) -> Run:
    """Create a draft with the same config, named as a copy; any member may copy any visible run."""
    copy = run_create(
        user=user,
        config=RunConfig.model_validate(run.config),
        name=f"{run.name[:112]} (copy)",
        parent=run,
        tags=run.tags,
    )
    _record(run, user, "duplicate", {"copy": copy.id})
    return copy


@transaction.atomic
def run_archive(*, run: Run, user: User) -> Run:
    """Take an ended run or a draft out of the list; its files stay."""
    run = _lock(run, user)
    if run.alive or run.state == State.QUEUED:
        raise ValidationError(f"The run is {run.state}; stop it before archiving.")
    run.archived_at = run.archived_at or timezone.now()
    run.save(update_fields=["archived_at"])
    _record(run, user, "archive")
    return run


@transaction.atomic
def run_unarchive(*, run: Run, user: User) -> Run:
    """Put an archived run back into the list."""
    run = _lock(run, user)
    run.archived_at = None
    run.save(update_fields=["archived_at"])
    _record(run, user, "unarchive")
    return run


@transaction.atomic
def run_rename(*, run: Run, user: User, name: str) -> Run:
    """Give the run another name; its id, folder and config stay."""
    run = _lock(run, user)
    name = " ".join(name.split())[:120]
    if not name:
        raise ValidationError("A run needs a name; write one.")
    run.name = name
    run.save(update_fields=["name"])
    transaction.on_commit(partial(live.notify, run.pk))
    return run


@transaction.atomic
def run_delete(*, run: Run, user: User) -> int:
    """Remove the run's folder, then its rows; return the bytes freed. Repeatable after a crash in between."""
    run = _lock(run, user)
    if run.alive or run.state == State.QUEUED:
        raise ValidationError(f"The run is {run.state}; stop it before deleting.")
    path = run.folder.path
    freed = folder_bytes(path)
    if path.exists():
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise ValidationError(f"The run folder could not be removed ({error.strerror}); ask an admin.") from error
    # The audit log keeps who deleted what; the Request rows go with the run, an emptied sweep with its last.
    run.delete()
    if run.sweep_id and not Run.objects.filter(sweep=run.sweep_id).exists():
        Sweep.objects.filter(pk=run.sweep_id).delete()
    transaction.on_commit(partial(live.notify, path.name))
    return freed


def _require(user: User, ability: str) -> None:
    if not user.can(ability):
        raise PermissionDenied(f"{user.username} may not do this; ask a maintainer or an admin.")


def _lock(run: Run, user: User) -> Run:
    """Return the row, locked and fresh, if `user` may act on it: their own runs, or all as a maintainer."""
    _require(user, "launch" if run.owner_id == user.pk else "manage")
    # no_key: ingest may go on inserting events that refer to the row.
    locked = Run.objects.select_for_update(no_key=True).filter(pk=run.pk).first()
    if locked is None:
        raise ValidationError("The run was deleted meanwhile.")
    return locked


def _enqueue(run: Run, *also: str) -> None:
    """Put the run into the queue; a draft or an ended run may name a server that is not allowed, or no longer."""
    if why := server_hosts.refusal(run.config.get("sampling", {})):
        raise ValidationError({server_hosts.FIELD: f"{server_hosts.FIELD}: {why}"})
    run.state, run.queued_at, run.waiting_reason = State.QUEUED, timezone.now(), ""
    run.save(update_fields=["state", "queued_at", "waiting_reason", *also])


def _record(run: Run, user: User, kind: str, data: dict[str, Any] | None = None) -> None:
    """Write the Request row; after commit ring the run's worker or the scheduler and tell the viewers."""
    Request.objects.create(run=run, user=user, kind=kind, data=data or {}, step=run.step)
    if run.state == State.QUEUED:
        queue.ring(queue.SCHEDULE)
    elif run.alive:
        queue.ring_worker(run.lease_worker)
    transaction.on_commit(partial(live.notify, run.pk))


def _why_not_resumable(run: Run) -> str:
    if run.state not in ENDED:
        return f"Only a run that ended can be resumed; this one is {run.state}."
    if run.state == State.FINISHED:
        return "The run finished all its steps; duplicate it to train longer."
    return "There is no complete checkpoint to resume from; duplicate the run to start over."


def _knob_value(run: Run, name: str, value: Any) -> float:
    spec = run.knobs.get(name)
    if spec is None:
        raise ValidationError(
            {name: f"This run has no knob “{name}”; it has {', '.join(sorted(run.knobs)) or 'none'}."}
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValidationError({name: f"{name} must be a finite number."})
    low, high = spec.get("low"), spec.get("high")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = (
            f"at least {low:g}"
            if high is None
            else f"at most {high:g}"
            if low is None
            else f"between {low:g} and {high:g}"
        )
        raise ValidationError({name: f"{name} is {value:g}; it must be {bounds}."})
    return float(value)
