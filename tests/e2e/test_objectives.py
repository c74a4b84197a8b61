"""The objective catalogue in a real browser, its pictures drawn by a real worker."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import eventually
from trainer.objectives import PARTS, PRESETS

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

FIELDS = ".picture-plot[data-side=right] .field"


@pytest.fixture
def analyst(valkey_server):
    """A worker of the analysis queue, in a thread of this process."""
    from celery.contrib.testing.worker import start_worker

    from workers.analysis import app

    with start_worker(app, pool="solo", queues=["analysis"], perform_ping_check=False, shutdown_timeout=30):
        yield


def test_searching_narrows_the_list_and_keeps_the_address(open_page, alice):
    page = open_page(alice, "/catalog/objectives/")
    assert page.locator("[data-row]").count() == len(PRESETS)
    page.keyboard.press("/")
    page.keyboard.type("covariance")
    eventually(page, "() => location.search === '?q=covariance'")
    assert 0 < page.locator("[data-row]").count() < len(PRESETS)
    assert page.evaluate("document.activeElement.id") == "q"
    page.check("input[name=stage][value=token_mask]")
    eventually(page, "() => location.search.includes('stage=token_mask')")
    names = page.locator("[data-row]").evaluate_all("rows => rows.map(row => row.dataset.row)")
    assert "clip-cov" in names
    assert "kl-cov" not in names
    page.reload()
    assert page.locator("[data-row]").evaluate_all("rows => rows.map(row => row.dataset.row)") == names
    page.fill("#q", "nothing at all like this")
    page.wait_for_selector("text=No method matches")
    page.click("text=Clear filters")
    page.wait_for_selector("[data-row=grpo]")


def test_rows_are_walked_and_opened_by_keyboard(open_page, alice):
    page = open_page(alice, "/catalog/objectives/")
    for key in "jjk":
        page.keyboard.press(key)
    assert page.get_attribute(".method.is-current", "data-row") == next(iter(PRESETS))
    page.keyboard.press("o")
    page.wait_for_url(f"**/catalog/objectives/{next(iter(PRESETS))}/")


def test_a_slider_redraws_the_picture(open_page, alice, analyst):
    page = open_page(alice, "/catalog/objectives/top-entropy-mask/")
    shown = f"document.querySelectorAll('{FIELDS}').length"
    touched = f"document.querySelectorAll('{FIELDS}:not(.is-zero)').length"
    eventually(page, f"() => {touched} > 0", seconds=60)  # the first picture waits for torch
    few, everything = page.evaluate(touched), page.evaluate(shown)
    assert 0 < few < everything
    slider = page.locator("[data-owner=top_entropy][data-name=share] input[type=range]")
    slider.evaluate("slider => { slider.value = 1000; slider.dispatchEvent(new Event('input', { bubbles: true })); }")
    assert float(page.input_value("#c-top_entropy-share")) == 1
    eventually(page, f"count => {touched} === count", everything)
    page.click("[data-reset]")
    eventually(page, f"count => {touched} === count", few)
    page.click(".picture-controls summary")
    page.fill("#c-ppo_clip-dual_clip", "20")  # a folded setting is a control like the others
    page.wait_for_selector("[data-name=dual_clip].is-moved")
    page.click("[data-view=entropy_change]")
    assert page.get_attribute("[data-view=entropy_change]", "aria-pressed") == "true"
    page.focus(".picture-plot[data-side=right]")
    page.keyboard.press("ArrowRight")
    assert "entropy" in page.inner_text("[data-readout]")
    page.fill("#c-top_entropy-share", "7")
    page.wait_for_selector("[data-name=share] .control-problem:has-text('less than or equal to 1')")
    page.problems[:] = [problem for problem in page.problems if "422" not in problem]  # the browser's own line


def test_every_formula_can_be_set(open_page, alice):
    page = open_page(alice, "/catalog/blocks/")
    formulas = {preset.name: preset.formula for preset in PRESETS.values() if preset.formula}
    formulas |= {name: kind.formula for name, kind in PARTS.items() if kind.formula}
    wrong = page.evaluate(
        """formulas => Object.entries(formulas).flatMap(([name, source]) => {
            try { katex.render(source, document.createElement("div"), { displayMode: true, strict: "ignore" }); }
            catch (error) { return [`${name}: ${error.message}`]; }
            return [];
        })""",
        formulas,
    )
    assert wrong == []
    assert page.locator(".formula .katex").count() == page.locator(".formula").count()


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("path", ["objectives/clip-cov/", "blocks/"])
def test_nothing_is_cut_off(open_page, alice, path, width):
    page = open_page(alice, f"/catalog/{path}", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_both_themes_draw_different_colours(open_page, alice, analyst):
    page = open_page(alice, "/catalog/objectives/grpo/")
    fill = f"() => document.querySelector('{FIELDS}:not(.is-zero)')?.getAttribute('fill')"
    eventually(page, f"() => Boolean(({fill})())", seconds=60)
    light = page.evaluate(fill)
    page.click("[data-theme-choice=dark]")
    eventually(page, f"before => ({fill})() !== before", light)
