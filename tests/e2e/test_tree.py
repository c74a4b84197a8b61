"""Forks and the tree of a prompt's completions, in a real browser."""

from __future__ import annotations

import random

import pytest
from django.urls import reverse

from tests.e2e.conftest import eventually
from tests.fabricate import HOSTILE, char_tokens, completion_row, forked_row, write_rollouts
from webapp.runs.models import Event, Run

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


def add_step(run: Run, step: int, rows: list[dict]) -> None:
    path = run.folder.rollout_file(step)
    write_rollouts(path, rows)
    data = {"path": f"rollouts/{path.name}", "completions": len(rows), "tokens": 1, "bytes": path.stat().st_size}
    Event.objects.create(run=run, seq=step, attempt=1, step=step, type="rollouts", time=run.created_at, data=data)


def branching(rng: random.Random) -> list[dict]:
    """Return a root, two forks off it (one draws the same token again), a fork of a fork; a plain group; a lone one."""
    rows = [completion_row(rng, 0, 0, "sum?", char_tokens("Let me add: 17"), 0.0)]
    rows.append(forked_row(rng, rows, 0, 7, char_tokens("check: 42"), 1.0))
    rows.append(forked_row(rng, rows, 0, 7, char_tokens("add: 18"), 0.0))
    rows.append(forked_row(rng, rows, 1, 14, char_tokens("43"), 1.0))
    for sample, text in enumerate(["abc", "abd", "xyz", "abc"]):
        rows.append(completion_row(rng, 1, sample, HOSTILE, char_tokens(text), float(sample < 2)))
    rows.append(completion_row(rng, 2, 0, "alone", char_tokens(HOSTILE), 1.0))
    rows.append(completion_row(rng, 3, 0, HOSTILE, char_tokens(HOSTILE), 1.0))
    rows.append(completion_row(rng, 3, 1, HOSTILE, char_tokens(HOSTILE[:40] + HOSTILE), 0.0))
    rows[-1] |= {"reward": None, "right": None}
    for row in rows:
        row["token_ids"] = [ord(sign) for sign in row["completion"]]
    return rows


@pytest.fixture
def run(alice, server) -> Run:
    run = Run.objects.create(owner=alice, name="forks", config={}, state="finished", step=3, attempt=1)
    add_step(run, 3, branching(random.Random(5)))
    return run


def open_run(open_page, alice, run: Run, query: str = "", **options):
    page = open_page(alice, reverse("runs:detail", args=[run.pk]) + f"?tab=rollouts{query}", **options)
    page.wait_for_selector(".rollout-text, .tree-picture, .tree-empty:not([hidden])")
    return page


def until_told(page, tip: str, place: list[int], said: str) -> None:
    """Move over a token until its tooltip says something; like a hand, again where the page moved meanwhile."""
    for _ in range(200):
        page.mouse.move(*page.evaluate(tip, place))
        page.wait_for_timeout(100)
        if said in page.text_content(".reader .token-tooltip"):
            return
        page.mouse.move(0, 0)
    raise AssertionError(f"The tooltip never said: {said}")


def labels(page) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('.tree-branch')].map((one) => one.getAttribute('aria-label'))")


def test_context_is_pale_and_a_fork_leads_to_its_parent(run, alice, open_page):
    page = open_run(open_page, alice, run)
    marks = """() => [...document.querySelectorAll(".rollout-text")].map(({ tokenText: text }) => ({
        context: [...Array(text.count).keys()].filter((t) => text.isContext(t)).length,
        coloured: [...Array(text.count).keys()].some((t) => text.isContext(t) && text.colourOf(t)),
        forks: [...text.branches.keys()] }))"""
    assert page.evaluate(marks) == [
        {"context": 0, "coloured": False, "forks": [7]},
        {"context": 7, "coloured": False, "forks": [14, 7]},
        {"context": 7, "coloured": False, "forks": [7]},
        {"context": 14, "coloured": False, "forks": [14]},
    ]
    tip = """([rollout, token]) => { const { tokenText } = document.querySelectorAll(".rollout-text")[rollout];
             const { left, top, width, height } = tokenText.rangeOf(token).getBoundingClientRect();
             return [left + width * 0.7, top + height / 2]; }"""
    for place, said in (
        ([1, 2], "taken from completion 1"),
        ([0, 7], "completions 2, 3 fork off before this token"),
    ):
        until_told(page, tip, place, said)

    link = page.locator("button.rollout-origin").nth(2)
    assert link.inner_text() == "fork of 2 after 14 tokens"
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**rollout=1&token=14**")
    assert page.locator(".rollout.is-current").get_attribute("id") == "rollout-1"
    assert "drawn anew from here on" not in page.inner_text("[data-token-facts]")
    assert "completion 4 forks off before this token" in page.inner_text("[data-token-facts]")
    page.select_option("[data-reader-show]", "right")  # the parent is wrong: the filter gives way
    page.locator("button.rollout-origin").first.click()
    page.wait_for_url("**rollout=0&token=7**")
    assert page.input_value("[data-reader-show]") == "all"


def test_the_tree_merges_what_begins_alike_and_is_walked_with_keys(run, alice, open_page):
    page = open_run(open_page, alice, run)
    page.keyboard.press("t")
    page.wait_for_selector(".tree-picture")
    assert "view=tree" in page.url
    said = labels(page)
    assert said[0].startswith("4 completions share tokens 1 to 7; 2 of 4 right, mean reward 0.5; 2 ways on; entropy of")
    assert "drawn anew from here: completion 2, completion 3" in said[0]
    assert said[1].startswith("2 completions share tokens 8 to 13")  # "add: 1": the same tokens drawn again
    assert [text.split(":")[0] for text in said[2:4]] == ["Completion 1", "Completion 3"]
    assert said[4].startswith("2 completions share tokens 8 to 14; 2 of 2 right")
    assert "drawn anew from here: completion 4" in said[4]
    assert page.locator(".tree-ring").count() == 2
    thick = page.evaluate(
        "[...document.querySelectorAll('.tree-line')].map((one) => Number(one.getAttribute('stroke-width')))"
    )
    assert thick == sorted(thick, reverse=True) or thick[0] == max(thick)
    assert thick[0] > thick[1] > thick[2]
    colours = page.evaluate("[...document.querySelectorAll('.tree-line')].map((one) => one.getAttribute('stroke'))")
    assert colours[2] == colours[3] == "#c2410c"  # wrong
    assert colours[4] == "#0072b2"  # right

    page.locator(".tree-branch[tabindex='0']").focus()
    for key, place in [("ArrowDown", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 7), ("Home", 0), ("ArrowUp", 0)]:
        page.keyboard.press(key)
        assert page.evaluate("Number(document.activeElement.dataset.node)") == place, key
    rows = page.locator("[data-tree-facts] tbody tr")
    assert [row.split("\t")[1:] for row in rows.all_inner_texts()] == [["2", "0 of 2", "0"], ["2", "2 of 2", "1"]]
    rows.nth(1).locator("button").click()
    assert page.evaluate("Number(document.activeElement.dataset.node)") == 4
    page.keyboard.press("Enter")
    page.wait_for_url("**rollout=1&token=14**")
    assert page.locator("[data-reader-tree]").is_hidden()
    assert page.get_attribute("[data-reader-tree-toggle]", "aria-pressed") == "false"


def test_plain_groups_lone_completions_and_hostile_texts(run, alice, open_page):
    page = open_run(open_page, alice, run, "&view=tree&group=1")
    said = labels(page)
    assert said[0].startswith("4 completions share only the prompt; 2 of 4 right")
    assert said[1].startswith("3 completions share tokens 1 to 2")
    assert said[2].startswith("Completions 1, 4 are the same: 1 of 2 right")
    page.locator(".tree-list summary").click()
    assert page.locator(".tree-list li").count() == len(said)
    assert page.locator(".tree-list li li li button").first.inner_text() == said[2]
    page.locator(".tree-list li li button").first.click()
    assert page.locator(".tree-branch[aria-selected='true']").get_attribute("data-node") == "1"
    page.locator("[data-reader-groups] .group-entry", has_text="alone").click()
    assert "One completion has no tree" in page.inner_text(".tree-empty")
    page.locator("[data-reader-groups] .group-entry").first.click()
    assert "choose a prompt" in page.inner_text(".tree-empty")
    page.locator("[data-reader-groups] .group-entry").last.click()
    page.wait_for_selector(".tree-picture")
    assert page.evaluate("window.hacked") is None
    assert page.locator(".tree img, .tree script, .tree b b").count() == 0
    assert "<script>window" in labels(page)[0]
    assert page.locator(".tree-line[stroke-dasharray]").count() == 1  # the ungraded one


def test_the_tree_fits_a_phone_in_the_dark(run, alice, open_page):
    page = open_run(open_page, alice, run, "&view=tree", width=420, height=800, scheme="dark")
    eventually(page, "document.querySelector('.tree-picture').getBoundingClientRect().right <= innerWidth")
    eventually(page, "document.documentElement.scrollWidth <= innerWidth")
    colours = page.evaluate("[...document.querySelectorAll('.tree-line')].map((one) => one.getAttribute('stroke'))")
    assert "#56b4e9" in colours
