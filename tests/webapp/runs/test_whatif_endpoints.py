"""What the What-if panel reads: who gets what, and what is said of bad questions."""

from __future__ import annotations

import json

import pytest
from django.urls import reverse

from tests.fabricate import fabricate_run
from webapp.runs import whatif

pytestmark = pytest.mark.django_db


@pytest.fixture
def run(alice, valkey_server):
    return fabricate_run(alice, steps=2, rewound=False)


def table(run, step=2):
    return reverse("runs:whatif", args=[run.pk, step])


def tokens(run, objective, step=2):
    text = objective if isinstance(objective, str) else json.dumps(objective)
    return reverse("runs:whatif_tokens", args=[run.pk, step]) + "?" + "objective=" + text.replace("&", "%26")


def waiting(valkey) -> list[dict]:
    """Return the messages that wait for an analysis worker."""
    return [json.loads(message) for message in valkey.lrange("analysis", 0, -1)]


def test_a_question_is_passed_on_once(run, login, alice, valkey, django_capture_on_commit_callbacks):
    client = login(alice)
    for _ in range(3):
        with django_capture_on_commit_callbacks(execute=True):
            response = client.get(table(run))
        assert response.status_code == 202
        assert response.json()["state"] == "waiting"
    (message,) = waiting(valkey)
    assert message["headers"]["task"] == "analysis.whatif"
    assert valkey.llen("isentrope") == 0


def test_a_viewer_may_ask_and_a_stranger_is_sent_to_sign_in(run, login, charlie, client):
    assert client.get(table(run)).status_code == 302
    assert login(charlie).get(table(run)).status_code == 202


def test_answers_come_from_the_file(run, login, alice):
    asked = whatif.question(run, 2, None)
    whatif.keep(run.folder.path, asked.key, None, b'{"rows": []}')
    response = login(alice).get(table(run))
    assert (response.status_code, response.json()) == (200, {"rows": []})


def test_progress_and_silence_are_told(run, login, alice, valkey_server):
    client = login(alice)
    client.get(table(run))
    key = whatif.question(run, 2, None).key
    whatif.say(run.pk, key, state=whatif.WORKING, done=3, total=90, rows=[{"preset": "grpo"}])
    assert client.get(table(run)).json()["done"] == 3
    whatif.say(run.pk, key, state=whatif.WAITING, asked=0)
    assert client.get(table(run)).json()["silent"] is True


def test_a_failure_is_told_with_its_field(run, login, alice):
    client = login(alice)
    client.get(table(run))
    key = whatif.question(run, 2, None).key
    whatif.say(run.pk, key, state=whatif.FAILED, problem="It needs X.", field="objective.parts")
    response = client.get(table(run))
    assert (response.status_code, response.json()) == (422, {"problem": "It needs X.", "field": "objective.parts"})


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("nonsense", "JSON"),
        ("[1]", "JSON object"),
        ({"preset": "no-such"}, "no-such"),
        ({"preset": "clip-cov", "parts": [{"type": "clip_cov", "share": 7}]}, "less than or equal to 1"),
    ],
)
def test_a_bad_objective_is_refused_by_name(run, login, alice, valkey, objective, said):
    response = login(alice).get(tokens(run, objective))
    assert response.status_code == 422
    assert said in response.json()["problem"]
    assert response.json()["field"]
    assert waiting(valkey) == []


def test_a_step_that_was_not_recorded_is_not_found(run, login, alice):
    response = login(alice).get(table(run, 77))
    assert response.status_code == 404
    assert "step 77" in response.json()["problem"]


def test_settings_are_the_presets_numbers(run, login, alice):
    client = login(alice)
    address = reverse("runs:whatif_settings", args=[run.pk])
    page = client.get(address, {"preset": "clip-cov"}).content.decode()
    assert 'data-owner="clip_cov"' in page
    assert 'data-name="share"' in page
    assert client.get(address, {"preset": "nope"}).status_code == 404


def test_the_page_has_the_panel_closed(run, login, alice):
    page = login(alice).get(reverse("runs:detail", args=[run.pk])).content.decode()
    assert 'data-whatif-toggle data-key="w"' in page
    assert "data-whatif hidden" in page
