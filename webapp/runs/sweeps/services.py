"""Verbs on sweeps: the verbs on runs, for all members in one transaction. Who may is decided as for a run.

Raises PermissionDenied for people who may not, ValidationError (one sentence with the fix) for what cannot be done.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction

from trainer.config import RunConfig
from webapp import queue
from webapp.accounts.models import User
from webapp.runs import services
from webapp.runs.models import ALIVE, Run, RunQuerySet, State, Sweep, new_id
from webapp.runs.sweeps.axes import MAX_MEMBERS, Axes
from webapp.runs.sweeps.plan import Member

RERUN = (State.FAILED, State.INTERRUPTED)
UNDER_WAY = (State.QUEUED, *ALIVE)


@transaction.atomic
def sweep_create(
    *, user: User, config: RunConfig, axes: Axes, members: Sequence[Member], tags: Sequence[str] = ()
) -> Sweep:
    """Create the sweep with its members as drafts; nothing is written to disk before their launch."""
    if not user.can("launch"):
        raise PermissionDenied(f"{user.username} may not launch runs; ask an admin for the role of a member.")
    if not 0 < len(members) <= MAX_MEMBERS:
        raise ValidationError(f"A sweep holds 1 to {MAX_MEMBERS} runs, not {len(members)}.")
    task, number = config.task.type, new_id()  # type: ignore[attr-defined]  # a union made at run time
    sweep = Sweep.objects.create(
        id=number,
        name=(config.name or f"{task} sweep {number[:4]}")[:120],
        owner=user,
        config=config.model_dump(mode="json"),
        axes=axes.model_dump(mode="json"),
    )
    for member in members:
        place = member.coordinates.model_dump(mode="json")
        services.run_create(user=user, config=member.config, name=member.name, tags=tags, sweep=sweep, member=place)
    return sweep


def sweep_launch(*, sweep: Sweep, user: User) -> int:
    """Queue every draft; return how many. All are queued or none: folders written before a failure are removed."""
    written: list[Run] = []
    try:
        with transaction.atomic(), queue.together():
            for run in _members(sweep, user).filter(state=State.DRAFT):
                written.append(run)
                services.run_launch(run=run, user=user)
            if not written:
                raise ValidationError("There is no draft left to launch in this sweep.")
    except Exception:
        for run in written:
            shutil.rmtree(run.folder.path, ignore_errors=True)
        raise
    return len(written)


@transaction.atomic
def sweep_request_stop(*, sweep: Sweep, user: User) -> int:
    """Ask all that run to stop with a checkpoint and take the others out of the queue; return how many."""
    with queue.together():
        # Queued ones first, so that none is started in place of one that stops.
        runs = sorted(_members(sweep, user).filter(state__in=UNDER_WAY), key=lambda run: run.state != State.QUEUED)
        for run in runs:
            services.run_request_stop(run=run, user=user)
    if not runs:
        raise ValidationError("There is nothing to stop: no run of this sweep is queued or running.")
    return len(runs)


@transaction.atomic
def sweep_rerun(*, sweep: Sweep, user: User) -> int:
    """Queue the failed and interrupted members again; return how many.

    One with a checkpoint resumes. One without starts anew as another run in its place; the failed one leaves the sweep
    for the archive, where its log stays.
    """
    with queue.together():
        failed = list(_members(sweep, user).filter(state__in=RERUN))
        for run in failed:
            if run.resumable:
                services.run_resume(run=run, user=user)
            else:
                _replace(run, user)
    if not failed:
        raise ValidationError("No run of this sweep has failed.")
    return len(failed)


def _replace(run: Run, user: User) -> None:
    again = services.run_create(
        user=run.owner,
        config=RunConfig.model_validate(run.config),
        name=run.name,
        parent=run,
        tags=run.tags,
        sweep=run.sweep,
        member=run.member,
    )
    services.run_archive(run=run, user=user)
    Run.objects.filter(pk=run.pk).update(sweep=None, member={})
    services.run_launch(run=again, user=user)


@transaction.atomic
def sweep_archive(*, sweep: Sweep, user: User) -> int:
    """Take all members out of the list; their files stay."""
    runs = list(_members(sweep, user).active())
    _refuse_under_way(runs, "archiving")
    for run in runs:
        services.run_archive(run=run, user=user)
    return len(runs)


@transaction.atomic
def sweep_unarchive(*, sweep: Sweep, user: User) -> int:
    """Put all members back into the list."""
    runs = list(_members(sweep, user).archived())
    for run in runs:
        services.run_unarchive(run=run, user=user)
    return len(runs)


@transaction.atomic
def sweep_rename(*, sweep: Sweep, user: User, name: str) -> Sweep:
    """Give the sweep another name; members whose names start with the old one follow."""
    runs = list(_members(sweep, user))
    name = " ".join(name.split())[:120]
    if not name:
        raise ValidationError("A sweep needs a name; write one.")
    for run in runs:
        if run.name.startswith(sweep.name + " · "):
            run.name = (name + run.name[len(sweep.name) :])[:120]
    Run.objects.bulk_update(runs, ["name"])
    sweep.name = name
    sweep.save(update_fields=["name"])
    return sweep


@transaction.atomic
def sweep_delete(*, sweep: Sweep, user: User) -> int:
    """Remove all members with their folders and the sweep; return the bytes freed. Repeatable after a crash."""
    runs = list(_members(sweep, user))
    _refuse_under_way(runs, "deleting")
    freed = sum(services.run_delete(run=run, user=user) for run in runs)
    Sweep.objects.filter(pk=sweep.pk).delete()
    return freed


def _members(sweep: Sweep, user: User) -> RunQuerySet:
    """Return the members if `user` may act on them: their own sweep's, or all as a maintainer. Order of making."""
    if not user.can("launch" if sweep.owner_id == user.pk else "manage"):
        raise PermissionDenied(f"{user.username} may not do this; ask the sweep's owner or a maintainer.")
    # Locked: of two people who press the same button the second finds it done.
    return Run.objects.select_for_update(no_key=True).filter(sweep=sweep).order_by("created_at", "id")


def _refuse_under_way(runs: Iterable[Run], what: str) -> None:
    if count := sum(run.state in UNDER_WAY for run in runs):
        raise ValidationError(f"{count} of its runs {'are' if count > 1 else 'is'} under way; stop them before {what}.")
