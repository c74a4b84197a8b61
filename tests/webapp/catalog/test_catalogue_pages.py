"""Models: everything that can be chosen is shown, with what is wrong."""

from __future__ import annotations

import pytest

from webapp.runs import checks

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh_catalogue(monkeypatch):
    monkeypatch.setattr(checks, "_catalogue", (0.0, []))


def test_models_are_listed_with_their_problems(login, alice, settings):
    folder = settings.MODELS_ROOT / "half<b>"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    page = login(alice).get("/catalog/models/").content.decode()
    assert "countdown-tiny" in page
    assert "/runs/new/?model=builtin%3Acountdown-tiny" in page
    assert "half&lt;b&gt;" in page
    assert page.count("Launch with this") < page.count("<article")
