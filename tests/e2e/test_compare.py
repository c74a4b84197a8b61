"""Comparing in a real browser: curves over each other, differences, one prompt side by side."""

from __future__ import annotations

import pytest

from tests.fabricate import fabricate_run

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def pair(alice, server):
    left = fabricate_run(alice, steps=24, name="left", state="finished")
    right = fabricate_run(alice, steps=30, name="right", state="finished", seed=2)
    right.config["optimiser"]["learning_rate"] = 0.5
    right.save()
    return left, right


def test_curves_differences_and_rollouts(open_page, alice, pair):
    page = open_page(alice, f"/runs/compare/?runs={pair[0].pk},{pair[1].pk}")
    expect(page.locator(".overlay canvas")).to_have_count(2)
    assert page.locator(".overlay-readout span").count() >= 4
    visible_rows = page.locator("[data-config-table] tbody tr:visible")
    assert visible_rows.count() == 1
    assert "learning_rate" in visible_rows.inner_text()
    page.check("[data-config-all]")
    assert visible_rows.count() > 20
    page.fill("[data-config-search]", "top_p")
    assert visible_rows.count() == 1
    page.wait_for_selector(".pane .rollout")
    assert page.locator(".pane").count() == 2


def test_the_address_keeps_the_view(open_page, alice, pair):
    page = open_page(alice, f"/runs/compare/?runs={pair[0].pk},{pair[1].pk}")
    page.wait_for_selector(".overlay canvas")
    page.click("[data-chart-bar] summary")
    page.check("[data-metric][value='grad/norm']")
    page.select_option("[data-axis]", "time")
    page.evaluate(
        "const s = document.querySelector('[data-smoothing]'); s.value = 0.5; s.dispatchEvent(new Event('input'))"
    )
    page.wait_for_selector(".overlay[aria-label='grad/norm'] canvas")
    page.reload()
    page.wait_for_selector(".overlay[aria-label='grad/norm'] canvas")
    assert page.input_value("[data-axis]") == "time"
    assert page.input_value("[data-smoothing]") == "0.5"


def test_a_run_is_added_and_taken_out(open_page, alice, pair):
    page = open_page(alice, f"/runs/compare/?runs={pair[0].pk}")
    page.select_option("[data-add-run] select", pair[1].pk)
    page.wait_for_selector(".chip:has-text('right')")
    page.click(".chip:has-text('left') .chip-remove")
    page.wait_for_selector(".chip:has-text('left')", state="detached")
    assert pair[1].pk in page.url


def test_hostile_completions_are_text(open_page, alice, pair):
    page = open_page(alice, f"/runs/compare/?runs={pair[0].pk},{pair[1].pk}")
    page.wait_for_selector(".pane .rollout")
    assert page.locator(".pane script, .pane img").count() == 0
