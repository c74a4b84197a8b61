"""What if, in a real browser with a real analysis worker: table, colours, settings, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.urls import reverse

from tests.e2e.conftest import eventually
from tests.trainer.whatif.test_whatif import four_tokens, moments
from webapp.runs.models import Event, Run

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

ROOT = Path(__file__).parents[2]
COMMAND = [
    sys.executable,
    "-m",
    "celery",
    "-A",
    "workers.analysis",
    "worker",
    "-Q",
    "analysis",
    "-P",
    "prefork",
    "-c",
    "1",
]
READY = "html[data-run-ready]"


@pytest.fixture
def analysis(settings, tmp_path, valkey_server):
    """A worker of the analysis queue over the test's folders."""
    env = {**os.environ, "ISENTROPE_RUNS": str(settings.RUNS_ROOT), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "analysis.log", "wb") as log:
        worker = subprocess.Popen(
            [*COMMAND, "--without-gossip", "--without-mingle"], cwd=ROOT, env=env, stdout=log, stderr=log
        )
    yield worker
    worker.terminate()
    worker.wait(20)
    print((tmp_path / "analysis.log").read_text()[-4000:])


@pytest.fixture
def run(alice, server) -> Run:
    """Two completions of two tokens, whose second right token lies past the clip."""
    run = Run.objects.create(owner=alice, name="four tokens", config={}, state="finished", step=3, attempt=1)
    pairs = ((0.9, 0.5), (0.2, 0.6))
    columns = {
        name: [[moments(p)[at] for p in pair] for pair in pairs]
        for at, name in enumerate(("sum_p2", "sum_p2_logp", "entropy_gain"))
    }
    later = [[-0.105, -0.357], [-1.609, -0.511]]
    path = four_tokens(run.folder.rollout_file(3), **columns, current_logprob=later)
    data = {"path": str(path), "completions": 2, "tokens": 4, "bytes": 1}
    Event.objects.create(run=run, seq=1, attempt=1, step=3, type="rollouts", time=run.created_at, data=data)
    return run


def kinds(page) -> list[list[str]]:
    """Return the names of the highlights over each token of the first two completions."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".rollout-text")].map(({ tokenText: text }) =>
           [...Array(text.count).keys()].map((t) => [text.colourOf(t).replace(/\\d/, ""),
             text.isMasked(t) ? "masked" : "", text.isClipped(t) ? "clipped" : ""].filter(Boolean).join(" ")))"""
    )


def test_what_another_objective_would_have_done(run, alice, open_page, analysis):
    page = open_page(alice, reverse("runs:detail", args=[run.pk]) + "?tab=rollouts")
    page.wait_for_selector(".rollout-text")
    assert page.locator("[data-whatif]").is_hidden()

    page.keyboard.press("w")
    rows = page.locator("[data-whatif-rows] tr")
    eventually(page, "document.querySelectorAll('[data-whatif-rows] tr').length > 40", seconds=60)
    eventually(page, "document.querySelector('[data-whatif-progress]').textContent === ''", seconds=60)
    assert "this run" in rows.first.inner_text()
    assert "2 completions · 4 tokens" in page.inner_text("[data-whatif-facts]")
    assert "not computable here" in page.inner_text("[data-whatif-refused] summary")
    assert page.text_content("[data-whatif-empty]") == ""

    page.fill("[data-whatif-filter]", "80/20")
    page.locator("[data-whatif-rows] label", has_text="80/20").first.click()
    page.wait_for_url("**whatif=top-entropy-mask**")
    eventually(page, "document.querySelector('.rollout-text').tokenText.columns.whatif !== undefined", seconds=60)
    assert page.input_value("[data-reader-colour]") == "whatif"
    assert kinds(page) == [["masked", "clipped"], ["masked", "masked"]]
    page.keyboard.press("o")
    assert page.input_value("[data-reader-colour]") == "difference"
    page.keyboard.press("o")
    assert kinds(page)[0][0] == "up"
    assert page.get_attribute('[data-paint="weight"]', "aria-checked") == "true"

    page.wait_for_selector('[data-whatif-settings] [data-name="share"] input')
    page.fill('[data-whatif-settings] [data-name="share"] input[type="number"]', "1")
    page.click('[data-paint="whatif"]')
    edited = "[...document.querySelectorAll('.whatif-tag')].some(({ textContent }) => textContent === 'edited')"
    eventually(page, edited, seconds=60)
    assert kinds(page) == [["up", "clipped"], ["down", "down"]]

    box = page.evaluate(
        """() => { const { tokenText } = document.querySelector(".rollout-text");
           const { left, top, width, height } = tokenText.rangeOf(1).getBoundingClientRect();
           return [left + width * 0.75, top + height / 2]; }"""
    )
    page.mouse.move(*box)
    eventually(page, "document.querySelector('.token-tooltip').textContent.includes('clipped')")
    assert "What if: 80/20" in page.inner_text(".token-tooltip")


def test_sorting_and_a_deep_link(run, alice, open_page, analysis):
    page = open_page(alice, reverse("runs:detail", args=[run.pk]) + "?tab=rollouts&whatif=clip-cov&colour=difference")
    eventually(page, "document.querySelector('.rollout-text')?.tokenText.columns.whatif !== undefined", seconds=60)
    eventually(page, "document.querySelector('[data-whatif-progress]').textContent === ''", seconds=60)
    assert page.is_checked('[data-whatif-rows] input[value="clip-cov"]')
    assert page.input_value("[data-reader-colour]") == "difference"
    page.click('[data-sort="mass"]')
    assert page.get_attribute('th:has([data-sort="mass"])', "aria-sort") == "descending"
    masses = page.evaluate(
        "[...document.querySelectorAll('.whatif-mass b')].slice(1).map((one) => parseFloat(one.textContent))"
    )
    assert masses == sorted(masses, reverse=True)
    assert masses[0] > masses[-1]
    page.click("[data-whatif-close]")
    assert "whatif" not in page.url
    assert page.input_value("[data-reader-colour]") == "entropy"
