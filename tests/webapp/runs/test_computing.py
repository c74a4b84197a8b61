"""What the run page says of how a run computes."""

from __future__ import annotations

import pytest
from django.urls import reverse
from django.utils import timezone

from trainer.config import load
from webapp.runs import story
from webapp.runs.models import Event
from webapp.runs.services import run_create

pytestmark = pytest.mark.django_db


def test_the_newest_attempts_choices_are_shown_with_their_reasons_and_escaped(login, alice):
    run = run_create(user=alice, config=load({}))
    assert story.computing(run) == []  # before it begins
    plans = (
        {"old_logprobs": {"choice": "score", "why": "earlier"}},
        {
            "old_logprobs": {"choice": "engine", "why": "no <b>gradient</b> depends"},
            "something_new": {"choice": "x", "why": "y"},
        },
    )
    for attempt, plan in enumerate(plans, 1):
        Event.objects.create(
            run=run, attempt=attempt, seq=attempt, type="started", step=0, time=timezone.now(), data={"plan": plan}
        )
    page = login(alice).get(reverse("runs:detail", args=[run.pk]) + "?tab=config").content.decode()
    shown = page[page.index("How it computes") :].split("</dl>")[0]
    assert "Log-probs at the start of a step" in shown
    assert "no &lt;b&gt;gradient&lt;/b&gt; depends" in shown
    assert "Something new" in shown
    assert "earlier" not in shown


def test_an_attempt_of_an_older_version_has_no_such_section(login, alice):
    run = run_create(user=alice, config=load({}))
    Event.objects.create(run=run, attempt=1, seq=1, type="started", step=0, time=timezone.now(), data={"device": "cpu"})
    page = login(alice).get(reverse("runs:detail", args=[run.pk])).content.decode()
    assert "How it computes" not in page
