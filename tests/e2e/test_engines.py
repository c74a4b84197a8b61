"""What the run page shows of the engine that generates: entropies it knows by bounds alone, its server's log."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from django.urls import reverse

from tests.e2e.conftest import eventually
from tests.fabricate import fabricate_run
from webapp.runs import live
from webapp.runs.models import Run
from workers.ingest import Ingest

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

# Left by a trainer under vLLM: countdown-tiny-llama, sampling.vllm.entropy = "bounds" from two likeliest tokens,
# optimiser.old_logprobs = "engine", four steps of four prompts.
BOUNDED = Path(__file__).parents[1] / "golden" / "bounded_run"
TIP = """(token) => { const { tokenText } = document.querySelector('.rollout-text');
         const { left, top, width, height } = tokenText.rangeOf(token).getBoundingClientRect();
         return [left + width * 0.7, top + height / 2]; }"""


@pytest.fixture
def bounded(alice, server) -> Run:
    config = json.loads((BOUNDED / "config.json").read_text())
    run = Run.objects.create(
        owner=alice, name="bounds", config=config, state="running", attempt=1, lease_token=1, lease_worker="w"
    )
    shutil.copytree(BOUNDED, run.folder.path)
    Ingest(run).drain()
    run.refresh_from_db()
    return run


def test_what_is_known_by_bounds_is_called_bounds(bounded, alice, open_page, valkey, tmp_path):
    page = open_page(alice, reverse("runs:detail", args=[bounded.pk]))
    page.wait_for_selector('[data-chart="entropy"] canvas')
    assert "nats, between top-k bounds" in page.inner_text('[data-chart="entropy"]')
    readout = page.inner_text('[data-chart="entropy"] [data-chart-readout]')
    assert "mean is at least 0.389" in readout
    assert "at most 0.488" in readout
    page.hover('[data-chart="entropy"] .u-over')
    assert "mean is at least" in page.inner_text("[data-chart-tooltip]")
    page.screenshot(path=tmp_path / "chart.png")

    page.click('[data-tab="rollouts"]')
    page.wait_for_selector(".rollout-text")
    assert page.inner_text("[data-reader-legend]").startswith("Entropy, middle of its top-k bounds")
    head = page.locator(".rollout-head").first
    assert "–" in head.inner_text().split("H ")[1].split("\n")[0]
    assert head.locator("[title*='lies between these top-k bounds']").count() == 1
    assert "–" in page.locator("[data-reader-groups] .group-note").nth(1).inner_text().split("H ")[1]
    page.mouse.move(*page.evaluate(TIP, 0))
    eventually(
        page,
        "/between [0-9.]+ and [0-9.]+ nats .top-k bounds./.test(document.querySelector('.token-tooltip').textContent)",
    )
    tooltip = page.inner_text(".token-tooltip")
    assert "the middle of the bounds" in tooltip
    assert "bits" not in tooltip  # a number that nobody knows is not said in another unit either
    page.screenshot(path=tmp_path / "tooltip.png")
    page.mouse.click(*page.evaluate(TIP, 1))
    assert "top-k bounds" in page.inner_text("[data-token-announce]")

    valkey.xadd(live.stream(bounded.pk), {"f": (BOUNDED / "live.bin").read_bytes()})
    page.wait_for_selector("[data-live-bounds]:not([hidden])")
    eventually(page, "document.querySelectorAll('.live-row').length === 16")
    assert all("–" in text for text in page.locator(".live-facts").all_inner_texts())
    assert page.inner_text("[data-live-legend]").startswith("Entropy, middle of its top-k bounds")
    page.locator("[data-live]").scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "live.png")
    print("screenshots:", tmp_path)


def test_the_rollout_servers_log_is_one_choice_away(alice, server, open_page, tmp_path):
    run = fabricate_run(alice, steps=3, rewound=False)
    config = {**run.config, "sampling": {**run.config["sampling"], "server": {"enabled": True}}}
    Run.objects.filter(pk=run.pk).update(config=config)
    page = open_page(alice, reverse("runs:detail", args=[run.pk]) + "?tab=log")
    said = "document.querySelector('[data-log-body]').textContent"
    eventually(page, f"{said}.includes('step 1 reward')")
    page.select_option("[data-log-of]", "server")
    eventually(page, f"{said}.includes('has written nothing yet: it starts with the run')")
    assert "log=server" in page.url
    run.folder.server_log.write_text("listening on 127.0.0.1:7000\n<img src=x onerror=alert(1)>\n")
    eventually(page, f"{said}.includes('<img src=x')")
    assert page.locator("[data-log-body] img").count() == 0
    page.screenshot(path=tmp_path / "log.png")
    print("screenshots:", tmp_path)

    page.reload()
    eventually(page, f"{said}.includes('listening on')")
    page.select_option("[data-log-of]", "trainer")
    eventually(page, f"{said}.includes('step 1 reward') && !{said}.includes('listening')")
    assert "log=" not in page.url
