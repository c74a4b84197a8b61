"""The whole path in a real browser: sign in, launch, watch, steer, stop, resume, survive, compare, take home, delete.

One stack serves all tests of this module and each goes on where the one before it ended.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.e2e.stack import Stack, sign_in, stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STEPS = 110  # enough to be alive at every action below, however slow the browser is
EVERY = 10  # steps between checkpoints
SHORT = 12  # steps of the second run
LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
prompt = tokenizer(sys.argv[2], return_tensors="pt")
made = model.generate(input_ids=prompt["input_ids"], max_new_tokens=4, min_new_tokens=4)
print(made.shape[1] - prompt["input_ids"].shape[1])
"""
READS = """([chart, pattern]) =>
    new RegExp(pattern).test(document.querySelector(`[data-chart=${chart}] [data-chart-readout]`).textContent)"""
SEEN = "window.seen = []; document.addEventListener('run:events', ({ detail }) => window.seen.push(...detail));"


class Journey:
    """The browser's page, the stack behind it and what the tests so far have made."""

    def __init__(self, stack: Stack, page) -> None:
        self.stack, self.page, self.run, self.rival = stack, page, "", ""

    def last(self, kind: str) -> dict:
        """Return the newest event of a type that the main run has written."""
        return until(lambda: self.stack.events(self.run, kind), what=f"an event of type {kind}")[-1]

    def open(self, run: str, query: str = "") -> None:
        self.page.goto(f"{self.stack.url}/runs/{run}/{query}")
        self.page.wait_for_selector("html[data-run-ready]")
        self.page.wait_for_selector('[data-run-connection][data-state="live"]')

    def wait_for_state(self, state: str, seconds: float = 60) -> None:
        self.page.wait_for_selector(f'#run-header[data-state="{state}"]', timeout=1000 * seconds)

    def wait_for_step(self, step: int) -> None:
        """Wait until the page itself has counted to a step."""
        self.page.wait_for_function(
            "(step) => parseInt(document.querySelector('[data-run-step]').textContent) >= step", arg=step
        )

    def press(self, name: str) -> None:
        self.page.click(f'#run-header form[action$="/{name}/"] button')

    def resume(self, attempt: int) -> None:
        self.press("resume")
        self.page.wait_for_function(
            "(n) => window.seen.some((e) => e.type === 'started' && e.attempt === n)", arg=attempt
        )
        self.wait_for_state("running")


@pytest.fixture(scope="module")
def journey(browser):
    """A started stack and one page that stays open through all tests."""
    with stack() as running:
        context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
        context.add_init_script(SEEN)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("dialog", lambda dialog: dialog.accept())
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        yield Journey(running, page)
        context.close()
        assert problems == []


@pytest.fixture(autouse=True)
def _keep_going(request, journey, tmp_path_factory):
    """A failed step of the path leaves a picture and skips the rest, which could only fail for the same reason."""
    if getattr(journey, "failed", ""):
        pytest.skip(f"the path ended in {journey.failed}")
    before = request.session.testsfailed
    yield
    if request.session.testsfailed > before:
        journey.failed = request.node.name
        picture = Path(os.environ.get("ISENTROPE_SHOTS", tmp_path_factory.getbasetemp())) / f"{request.node.name}.png"
        journey.page.screenshot(path=picture, full_page=True)
        print(f"\nThe page when it failed: {picture}\nLogs of the stack:\n{journey.stack.tails()}")


def test_one_time_link_signs_in_once(journey, browser):
    sign_in(journey.page, journey.stack)
    journey.page.wait_for_selector("text=No runs yet.")
    stranger = browser.new_context().new_page()
    stranger.goto(journey.stack.link)
    assert "has been used" in stranger.inner_text("main")
    stranger.goto(journey.stack.url + "/runs/")
    assert "/runs/" not in stranger.url.split("?")[0]
    stranger.context.close()


def test_form_checks_across_fields_and_launches(journey):
    page = journey.page
    page.goto(journey.stack.url + "/runs/new/")
    page.click('label.pick:has(input[name="task.type"][value="countdown"])')
    page.click('label.pick:has(input[name="objective.preset"][value="entropy-target"])')
    page.wait_for_selector("#objective-parts >> text=Thermostat")
    fields = {
        "name": "Held entropy",
        "sampling.prompts_per_step": 16,
        "sampling.samples_per_prompt": 8,
        "sampling.max_completion_tokens": 8,
        "optimiser.steps": STEPS,
        "optimiser.minibatches_per_step": 3,
        "checkpoint.every_steps": EVERY,
        "evaluation.every_steps": 20,
        "evaluation.prompts": 8,
        "evaluation.samples_per_prompt": 4,
    }
    for name, value in fields.items():
        page.fill(f'[name="{name}"]', str(value))
    page.wait_for_selector(
        '[data-error-for="optimiser.minibatches_per_step"] >> text=16 prompts per step do not divide'
    )
    assert page.locator("[data-error-for]").filter(has_text=re.compile(r"\S")).count() == 1
    page.fill('[name="optimiser.minibatches_per_step"]', "2")
    page.wait_for_selector("text=Ready to launch")
    toml = page.text_content("#resolved-toml")
    assert "minibatches_per_step = 2" in toml
    assert 'preset = "entropy-target"' in toml
    assert "python -m trainer run Held-entropy.toml" in page.text_content("#shell-command")
    page.click("[data-launch]")
    page.wait_for_url(re.compile(r"/runs/[a-z0-9]{6,}/$"))
    journey.run = page.url.rstrip("/").rpartition("/")[2]


def test_page_lives_without_reload(journey):
    page = journey.page
    page.evaluate("window.unreloaded = true")
    journey.wait_for_state("running")
    journey.wait_for_step(2)
    # The target is known once the initial entropy is: after the first five steps.
    page.wait_for_function(READS, arg=["entropy", r"mean \S*\d.*target \S*\d"])
    page.wait_for_function(READS, arg=["reward", r"mean \S*\d"])
    page.wait_for_selector('[data-chart="entropy"] canvas')
    page.wait_for_function("() => document.querySelectorAll('.live-row').length > 0")
    step = page.inner_text("[data-run-step]")
    page.wait_for_function("(step) => document.querySelector('[data-run-step]').textContent !== step", arg=step)
    page.wait_for_selector('.live-text span[class*="heat"]')
    page.locator(".rollout-text").first.scroll_into_view_if_needed()
    page.wait_for_function("() => [...CSS.highlights].some(([name, ranges]) => name.startsWith('heat') && ranges.size)")
    assert page.evaluate("window.unreloaded")


def test_hover_tells_what_the_objective_did(journey):
    page = journey.page
    page.click("[data-reader-follow]")  # the step stays while the pointer travels
    page.locator(".rollout-text").first.scroll_into_view_if_needed()
    spot = page.evaluate(
        """() => { const range = document.querySelector(".rollout-text").tokenText.rangeOf(0);
                   const { left, top, width, height } = range.getBoundingClientRect();
                   return [left + width / 2, top + height / 2]; }"""
    )
    page.mouse.move(*spot)
    tooltip = page.wait_for_selector("[data-token-tooltip]:not([hidden])")
    said = tooltip.inner_text()
    for word in ("Entropy", "nats", "Log-prob", "Probability", "Objective weight"):
        assert word in said
    page.click("[data-reader-follow]")


def test_steering_is_taken_by_the_next_step(journey):
    page = journey.page
    knob = '[data-knob="entropy_target"]'
    page.fill(f"{knob} input[name=value]", "0.9")
    page.click(f"{knob} button")
    page.wait_for_function("() => window.seen.some((e) => e.type === 'knob' && e.source === 'user' && e.new === 0.9)")
    page.wait_for_selector(f"{knob} [data-knob-pending]", state="hidden")
    assert page.inner_text(f"{knob} [data-knob-value]") == "0.9"
    page.click('[data-tab="timeline"]')
    page.wait_for_selector("#run-timeline >> text=0.9")
    page.click('[data-tab="overview"]')
    assert journey.last("knob")["name"] == "entropy_target"


def test_stop_writes_a_checkpoint_and_resume_goes_on(journey):
    page = journey.page
    journey.press("stop")
    journey.wait_for_state("stopped")
    stopped = journey.last("finished")
    assert stopped["status"] == "stopped"
    assert 0 < stopped["step"] < STEPS, "the run ended before it could be stopped"
    assert journey.last("checkpoint")["step"] == stopped["step"]
    page.wait_for_selector("#run-checkpoints a[download]", state="attached")
    journey.resume(attempt=2)
    assert journey.last("started")["resume_step"] == stopped["step"]
    journey.wait_for_step(stopped["step"] + 1)


def test_killed_trainer_is_interrupted_and_resumes_from_its_checkpoint(journey):
    page = journey.page
    checkpoint = until(lambda: later_checkpoint(journey), what="a checkpoint of the second attempt")
    until(lambda: journey.last("metrics")["step"] >= checkpoint + 2, what="steps behind the checkpoint")
    os.kill(journey.last("started")["pid"], signal.SIGKILL)
    journey.wait_for_state("interrupted", seconds=30)
    reached = journey.last("metrics")["step"]
    journey.resume(attempt=3)
    assert journey.last("started")["resume_step"] == checkpoint < reached
    journey.wait_for_step(checkpoint + 1)
    # The branch that no longer counts is kept, apart from the one that does.
    segments = page.evaluate(
        """async () => { const page = JSON.parse(document.getElementById("run-data").textContent);
                         const answer = await fetch(page.urls.series + "?names=entropy/mean");
                         return (await answer.json()).series["entropy/mean"]; }"""
    )
    old = [steps for attempt, superseded, steps, *_ in segments if superseded and attempt == 2]
    assert old == [list(range(checkpoint + 1, reached + 1))]


def later_checkpoint(journey: Journey) -> int:
    """Return the step of a checkpoint that the second attempt has written, 0 if there is none."""
    found = [event["step"] for event in journey.stack.events(journey.run, "checkpoint") if event["attempt"] == 2]
    return found[-1] if found else 0


def test_web_restart_loses_no_step(journey):
    page = journey.page
    assert not journey.stack.events(journey.run, "finished")[1:], "the run ended before the web server was killed"
    os.kill(journey.stack.child("web"), signal.SIGKILL)
    page.wait_for_selector('[data-run-connection]:not([data-state="live"])')
    page.wait_for_selector('[data-run-connection][data-state="live"]')
    journey.wait_for_state("finished", seconds=240)
    last = journey.last("finished")["seq"]
    page.wait_for_function("(seq) => window.seen.at(-1)?.seq === seq", arg=last)
    seen = page.evaluate("window.seen.map((event) => event.seq)")
    assert seen == list(range(seen[0], last + 1))
    current = [event["step"] for event in journey.stack.events(journey.run, "metrics") if event["attempt"] == 3]
    assert current[-1] == STEPS
    assert page.evaluate("window.unreloaded")


def test_duplicate_with_another_objective_finishes(journey):
    page = journey.page
    page.click("text=Duplicate…")
    page.wait_for_url("**/runs/new/?copy=*")
    page.click('label.pick:has(input[name="objective.preset"][value="grpo"])')
    page.fill('[name="optimiser.steps"]', str(SHORT))
    page.fill('[name="name"]', "Plain GRPO")
    page.wait_for_function("() => document.querySelector('#resolved-toml')?.textContent.includes('preset = \"grpo\"')")
    page.wait_for_function(
        f"() => document.querySelector('#resolved-toml')?.textContent.includes('\\nsteps = {SHORT}\\n')"
    )
    page.click("[data-launch]")
    page.wait_for_url(re.compile(r"/runs/[a-z0-9]{6,}/$"))
    journey.rival = page.url.rstrip("/").rpartition("/")[2]
    journey.wait_for_state("finished", seconds=120)
    page.wait_for_selector("text=copy of Held entropy")


def test_compare_shows_curves_differences_and_rollouts(journey):
    page = journey.page
    page.goto(journey.stack.url + "/runs/")
    for run in (journey.run, journey.rival):
        page.check(f'input[name="runs"][value="{run}"]')
    page.click('[data-bulk-bar] button[value="compare"]')
    page.wait_for_url("**/runs/compare/**")
    page.wait_for_selector("[data-charts] canvas")
    rows = page.locator("[data-config-table] tbody tr:visible th").all_inner_texts()
    assert {"optimiser.steps", "objective.preset"} <= set(rows)
    assert not {"sampling.prompts_per_step", "model.source", "seed"} & set(rows)
    page.wait_for_function("() => document.querySelectorAll('.pane .rollout-text').length > 1")
    panes = page.locator(".pane")
    assert panes.count() == 2
    prompts = panes.locator(".group-prompt").all_inner_texts()
    assert prompts[0] == prompts[1] != ""


def test_downloaded_checkpoint_loads_and_generates(journey, tmp_path):
    page = journey.page
    journey.open(journey.run, "?tab=checkpoints")
    with page.expect_download() as download:
        page.locator("#run-checkpoints a[download]").first.click()
    archive = tmp_path / "checkpoint.tar"
    download.value.save_as(archive)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert not (folder / "trainer_state").exists()
    command = [sys.executable, "-c", LOAD, str(folder), "1 2 3 = 6:"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "4", done.stderr


def test_archive_hides_and_delete_frees_the_disk(journey):
    page = journey.page
    journey.open(journey.rival)
    journey.press("archive")
    page.wait_for_selector("#run-header >> text=Unarchive")
    page.goto(journey.stack.url + "/runs/")
    assert page.locator(f"#run-{journey.run}").count() == 1
    assert page.locator(f"#run-{journey.rival}").count() == 0
    folder = journey.stack.run_folder(journey.rival)
    assert any(folder.rglob("*.safetensors"))
    journey.open(journey.rival)
    page.click('form[action$="/delete/"] button')
    page.wait_for_url("**/runs/")
    page.wait_for_selector(".toast-body >> text=Plain GRPO was deleted")
    until(lambda: not folder.exists(), what="the run folder to go")
    page.goto(journey.stack.url + "/runs/?archived=1")
    assert page.locator(f"#run-{journey.rival}").count() == 0
