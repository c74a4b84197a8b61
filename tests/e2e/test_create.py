"""Making a run in a real browser: typing is judged beside the field, the objective is drawn, a launch is queued."""

from __future__ import annotations

import pytest

from webapp.runs import checks
from webapp.runs.models import Run, State

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def quick_check(monkeypatch):
    async def deep(config):
        return checks.Checked()

    monkeypatch.setattr(checks, "deep", deep)


def test_typing_is_judged_and_never_lost(open_page, alice):
    page = open_page(alice, "/runs/new/")
    steps = page.locator("[name='optimiser.steps']")
    page.fill("[name='sampling.prompts_per_step']", "33")
    page.fill("[name='optimiser.minibatches_per_step']", "2")
    steps.fill("77")
    page.wait_for_selector("#f-optimiser-minibatches_per_step-error:has-text('33 prompts per step do not divide')")
    assert steps.input_value() == "77"
    assert steps.evaluate("element => element === document.activeElement")
    assert "1 thing to mend" in page.inner_text("#panel")
    page.click("#panel [data-go]")
    assert page.evaluate("document.activeElement.name") == "optimiser.minibatches_per_step"
    page.fill("[name='optimiser.minibatches_per_step']", "3")
    page.wait_for_selector("#panel:has-text('Ready to launch')")
    assert page.inner_text("#f-optimiser-minibatches_per_step-error") == ""
    page.click("#panel summary:has-text('Resolved config')")
    assert "prompts_per_step = 33" in page.inner_text("#resolved-toml")
    page.fill("[name='sampling.prompts_per_step']", "36")
    page.wait_for_selector("#resolved-toml:has-text('prompts_per_step = 36')")
    assert page.is_visible("#resolved-toml"), "an answer folded what had been unfolded"


def test_what_was_changed_is_marked_and_can_be_undone(open_page, alice):
    page = open_page(alice, "/runs/new/")
    field = page.locator("#f-optimiser-steps-field")
    page.fill("[name='optimiser.steps']", "9")
    assert "is-changed" in field.get_attribute("class")
    field.locator("[data-reset]").click()
    assert page.input_value("[name='optimiser.steps']") == "160"
    assert "is-changed" not in field.get_attribute("class")


def test_fields_appear_where_they_matter(open_page, alice):
    page = open_page(alice, "/runs/new/")
    assert not page.is_visible("[name='model.lora.rank']")
    page.check("input[type=checkbox][name='model.lora.enabled']")
    assert page.is_visible("[name='model.lora.rank']")


def test_rewards_are_added_and_swapped(open_page, alice):
    page = open_page(alice, "/runs/new/")
    page.wait_for_selector("#run-form[data-htmx-powered]")
    page.click("button[value='add:rewards']")
    page.select_option("[name='rewards.1.type']", "exact")
    page.wait_for_selector("[name='rewards.1.ignore_case'][type=checkbox]")
    page.fill("[name='rewards.1.weight']", "0.5")
    page.click("button[value='remove:rewards.0']")
    page.wait_for_selector("[name='rewards.1.type']", state="detached")
    assert page.input_value("[name='rewards.0.type']") == "exact"
    assert page.input_value("[name='rewards.0.weight']") == "0.5"


def test_a_course_is_drawn_by_hand(open_page, alice):
    page = open_page(alice, "/runs/new/?preset=entrocraft")
    page.click("summary:has-text('Entrocraft band')")
    page.select_option("[name$='.schedule']", "drawn")
    plot = page.locator(".points-plot")
    box = plot.bounding_box()
    for x, y in ((0.2, 0.3), (0.9, 0.7)):
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.wait_for_selector(".points-plot [data-index='1']")
    before = page.input_value("[name$='.points']")
    assert before.count(":") == 2
    handle = page.locator(".points-plot [data-index='1']").bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(handle["x"], handle["y"] - 30, steps=4)
    page.mouse.up()
    moved = page.input_value("[name$='.points']")
    assert float(moved.rpartition(":")[2]) > float(before.rpartition(":")[2])
    page.wait_for_selector("#panel:has-text('Ready to launch')")
    page.wait_for_selector("#course polyline")


def test_a_launch_is_queued(open_page, alice, quick_check):
    page = open_page(alice, "/runs/new/")
    page.fill("[data-pick-search]", "held at a target")
    page.click(".pick:has(.pick-title:text-is('Target entropy'))")
    page.wait_for_selector("#objective-parts:has-text('Thermostat')")
    page.fill("[name='name']", "from the browser")
    page.click("[data-launch]")
    page.wait_for_url("**/runs/*/")
    run = Run.objects.get()
    assert (run.name, run.state, run.objective) == ("from the browser", State.QUEUED, "entropy-target")


def test_a_dataset_is_uploaded_and_launched_with(open_page, alice, tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text(
        "".join(f'{{"question": "{n}+1?<script>alert(1)</script>", "answer": {n + 1}}}\n' for n in range(40))
    )
    page = open_page(alice, "/catalog/datasets/")
    page.set_input_files("input[type=file]", path)
    page.click("[data-upload] button")
    page.wait_for_selector(".preview")
    assert "<script>alert(1)</script>" in page.inner_text(".preview")
    page.click("text=Launch with this")
    assert page.input_value("[name='task.prompt_column']") == "question"


@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_is_cut_off(open_page, alice, width):
    for path in (
        "/runs/new/",
        "/runs/",
        "/catalog/models/",
        "/catalog/datasets/",
        "/catalog/objectives/",
        "/runs/compare/",
    ):
        page = open_page(alice, path, width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        page.close()
