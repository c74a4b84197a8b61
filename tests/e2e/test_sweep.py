"""A sweep in a real browser: typed, listed live, launched; then its row, its page and its comparison."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import eventually
from tests.fabricate import Fabricator
from webapp.runs import checks
from webapp.runs.models import Event, Run, State, Sweep

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def quick_check(monkeypatch):
    async def deep(config):
        return checks.Checked()

    monkeypatch.setattr(checks, "deep", deep)


def test_a_small_sweep_is_typed_launched_and_followed(open_page, alice):
    page = open_page(alice, "/runs/new/")
    page.wait_for_selector("#run-form[data-htmx-powered]")
    page.fill("[name='name']", "league")
    page.check("[name='sweep.on']")
    page.fill("[data-sweep-search]", "dapo")
    page.check("[name='sweep.preset.dapo']")
    page.fill("[name='sweep.seeds']", "0-1")
    page.click("[data-sweep-add]")
    page.fill("[name='sweep.parameters.1.path']", "optimiser.learning_rate")
    page.fill("[name='sweep.parameters.1.values']", "1e-5, 9")
    expect(page.locator("#sweep-faults")).to_contain_text("dapo · learning_rate=9")
    expect(page.locator("#f-sweep-parameters-1-values-error")).to_contain_text("9: Must be")
    assert page.is_disabled("[name='sweep.preset.grpo']")  # it is the objective above
    page.fill("[name='sweep.parameters.1.values']", "1e-5, 3e-5")
    expect(page.locator("[data-launch-label]")).to_have_text("Launch 8 runs")
    page.click("[data-launch]")
    page.wait_for_url("**/runs/sweeps/*/")
    assert Run.objects.filter(sweep=Sweep.objects.get(), state=State.QUEUED).count() == 8
    expect(page.locator(".sweep-counts")).to_have_text("8 queued")

    run = Run.objects.first()
    fabricated = Fabricator(run, seed=1)
    for step in range(1, 6):
        fabricated.step(step, 1)
    Event.objects.bulk_create(fabricated.events)
    Run.objects.filter(pk=run.pk).update(state=State.RUNNING, step=5, summary={"reward/mean": 0.4321})
    expect(page.locator(".sweep-counts")).to_contain_text("1 running")
    expect(page.locator(".seed-cell.state-running")).to_contain_text("0.432")
    expect(page.locator(".overlay-body canvas")).to_have_count(2)
    page.set_viewport_size({"width": 420, "height": 900})
    eventually(page, "document.documentElement.scrollWidth <= 420")


def test_its_row_folds_open_by_key_and_stays_so(open_page, alice):
    from webapp.runs.forms import RunForm
    from webapp.runs.sweeps.plan import Typed, plan
    from webapp.runs.sweeps.services import sweep_create

    form = RunForm.posted([("name", "grid")])
    found = plan(form, Typed(on=True, presets=("dapo",), seeds="0-2"))
    sweep = sweep_create(user=alice, config=form.config, axes=found.axes, members=found.members)
    page = open_page(alice, "/runs/")
    expect(page.locator(".run-link")).to_have_text(["grid"])
    page.keyboard.press("j")
    page.keyboard.press("e")
    expect(page.locator(".sweep-fold .seed-cell")).to_have_count(6)
    Run.objects.filter(pk=sweep.runs.first().pk).update(state=State.FAILED)
    expect(page.locator(".sweep-fold .seed-cell.state-failed")).to_have_count(1)  # fresh rows leave it open
    page.reload()
    expect(page.locator(".sweep-fold .seed-cell")).to_have_count(6)
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("c")
    page.wait_for_url(f"**/runs/compare/?sweep={sweep.pk}")
    assert page.locator("[data-bands]").is_checked()
