"""The run list in a real browser: filters, selection that survives refreshes, the keyboard, tags."""

from __future__ import annotations

import pytest

from webapp.runs.models import Run, State

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def runs(alice, server):
    names = ("alpha", "beta", "gamma")
    return [
        Run.objects.create(owner=alice, name=name, config={}, state=State.FINISHED, objective="grpo") for name in names
    ]


def shown(page) -> list[str]:
    return page.locator(".run-link").all_inner_texts()


def test_search_narrows_and_the_address_follows(open_page, alice, runs):
    page = open_page(alice, "/runs/")
    page.wait_for_selector("#filters[data-htmx-powered]")
    page.keyboard.press("/")
    page.keyboard.type("bet")
    expect(page.locator(".run-link")).to_have_count(1)
    assert page.url.endswith("/runs/?q=bet")
    page.go_back()
    expect(page.locator(".run-link")).to_have_count(3)


def test_sorting_keeps_the_filter(open_page, alice, runs):
    page = open_page(alice, "/runs/?q=a")
    page.click("thead a:has-text('Name')")
    expect(page.locator(".run-link").first).to_have_text("alpha")
    assert "sort=name" in page.url
    assert "q=a" in page.url


def test_keyboard_selects_and_compares(open_page, alice, runs):
    page = open_page(alice, "/runs/")
    page.keyboard.press("x")
    page.keyboard.press("j")
    page.keyboard.press("x")
    assert page.inner_text("[data-selected-count]") == "2"
    page.keyboard.press("c")
    page.wait_for_url("**/runs/compare/?runs=*")
    assert page.locator(".chip").count() == 2


def test_shift_click_selects_a_range(open_page, alice, runs):
    page = open_page(alice, "/runs/")
    boxes = page.locator("input[name=runs]")
    boxes.nth(0).click()
    boxes.nth(2).click(modifiers=["Shift"])
    assert page.inner_text("[data-selected-count]") == "3"


def test_fresh_rows_arrive_and_the_selection_stays(open_page, alice, runs):
    page = open_page(alice, "/runs/")
    page.check(f"input[value='{runs[1].pk}']")
    Run.objects.filter(pk=runs[1].pk).update(state=State.RUNNING, step=5, total_steps=9)
    page.wait_for_selector(f"#run-{runs[1].pk} .state-running")
    assert page.is_checked(f"input[value='{runs[1].pk}']")
    assert page.inner_text("[data-selected-count]") == "1"


def test_tags_are_edited_in_their_row(open_page, alice, runs):
    page = open_page(alice, "/runs/")
    row = page.locator(f"#run-{runs[0].pk}")
    row.hover()
    row.locator("[data-edit-tags]").click()
    page.keyboard.type("seed-1, <b>x</b>")
    page.keyboard.press("Enter")
    row.locator(".tag:has-text('<b>x</b>')").wait_for()
    runs[0].refresh_from_db()
    assert runs[0].tags == ["seed-1", "<b>x</b>"]


def test_deleting_asks_first(open_page, alice, runs):
    page = open_page(alice, "/runs/")
    asked = []
    page.on(
        "dialog",
        lambda dialog: (asked.append(dialog.message), dialog.dismiss() if len(asked) == 1 else dialog.accept()),
    )
    page.check(f"input[value='{runs[0].pk}']")
    page.click("button[value=delete]")
    assert Run.objects.count() == 3
    page.click("button[value=delete]")
    page.wait_for_selector("#toasts :text('Deleted 1 run.')")
    assert len(asked) == 2
    assert not Run.objects.filter(pk=runs[0].pk).exists()
