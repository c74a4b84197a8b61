"""A lease has one owner; a stale token writes nothing."""

from __future__ import annotations

import pytest

from webapp.runs.models import Run, State
from workers import claim

pytestmark = pytest.mark.django_db


@pytest.fixture
def leased(new_run):
    run = new_run()
    assert claim.claim(run.pk, "w1", [])
    run.refresh_from_db()
    return run


def expire(run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(lease_expires_at="2020-01-01T00:00Z")


def test_a_run_is_claimed_once(leased):
    assert (leased.state, leased.attempt, leased.lease_worker, leased.lease_token) == ("starting", 1, "w1", 1)
    assert not claim.claim(leased.pk, "w2", [])
    leased.refresh_from_db()
    assert leased.lease_worker == "w1"


def test_a_draft_is_not_claimed(new_run):
    assert not claim.claim(new_run(launch=False).pk, "w1", [])


@pytest.mark.parametrize("write", [claim.write, lambda *at, **fields: claim.end(*at, State.FAILED, **fields)])
def test_a_stale_token_is_refused(leased, write):
    with pytest.raises(claim.LeaseLost):
        write(leased.pk, leased.lease_token - 1, failure="mine")
    leased.refresh_from_db()
    assert (leased.state, leased.failure) == ("starting", "")


def test_an_ended_run_is_not_written_any_more(leased):
    claim.end(leased.pk, leased.lease_token, State.FINISHED)
    with pytest.raises(claim.LeaseLost):
        claim.write(leased.pk, leased.lease_token, failure="late")
    assert not claim.renew(leased.pk, leased.lease_token)


def test_only_an_expired_lease_is_taken_over(leased):
    assert not claim.take_over(leased, "w2")
    expire(leased)
    assert claim.take_over(leased, "w2")
    assert not claim.take_over(leased, "w3")
    assert not claim.renew(leased.pk, leased.lease_token)


def test_an_expired_lease_nobody_took_is_renewed(leased):
    expire(leased)
    assert claim.renew(leased.pk, leased.lease_token)
    assert not claim.take_over(leased, "w2")


def test_a_run_that_never_started_goes_back_to_the_queue(leased):
    assert not claim.put_back(leased)
    expire(leased)
    assert claim.put_back(leased)
    leased.refresh_from_db()
    assert (leased.state, leased.attempt, leased.lease_worker) == ("queued", 0, "")


def test_a_pause_of_half_a_lease_is_noticed(monkeypatch):
    clock = claim.LeaseClock()
    now = claim.boot_seconds()
    monkeypatch.setattr(claim, "boot_seconds", lambda: now + claim.LEASE.total_seconds() * 0.4)
    clock.check()
    monkeypatch.setattr(claim, "boot_seconds", lambda: now + claim.LEASE.total_seconds() * 0.6)
    with pytest.raises(claim.Paused):
        clock.check()
