"""Completions growing in a real browser: choosing a prompt, freezing, coming back without a gap, several viewers."""

from __future__ import annotations

import itertools
import json
import struct

import pytest
from django.urls import reverse

from tests.e2e.conftest import eventually
from tests.fabricate import fabricate_run
from trainer.events import KIND_BOUNDED, KIND_END, KIND_GROUPS, KIND_PROMPT, KIND_TOKENS, Frame
from webapp.runs import live
from webapp.runs.models import WATCHED_AT_ONCE, Run, Watch
from webapp.runs.watching import watch

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

LIVE = '[data-run-connection][data-state="live"]'
SOCKETS = """
window.sockets = [];
window.WebSocket = class extends WebSocket { constructor(...given) { super(...given); window.sockets.push(this); } };
window.paints = [];
document.addEventListener("run:frames", () => window.paints.push(performance.now()));
"""
SHOWN = "[...document.querySelectorAll('.live-row')].map((row) => row.querySelector('.live-text').textContent)"


@pytest.fixture
def run(alice, server):
    return fabricate_run(alice, steps=6, rewound=False)


class Step:
    """The frames that a trainer would write for a step of a run, pushed into its stream."""

    def __init__(self, run: Run, valkey, step: int = 7) -> None:
        self.run, self.valkey, self.step, self.told = run, valkey, step, {}

    def push(self, *frames: Frame) -> None:
        self.valkey.xadd(live.stream(self.run.pk), {"f": b"".join(frame.encode() for frame in frames)})

    def groups(self, *groups: dict) -> None:
        self.push(Frame(KIND_GROUPS, 1, self.step, payload=json.dumps({"groups": groups}).encode()))

    def prompt(self, rollout: int, group: int, sample: int, **more) -> None:
        about = {"group": group, "sample": sample, "prompt": f"prompt {group}", "picked": False} | more
        self.told[rollout] = more.get("prefix_tokens", 0)
        self.push(Frame(KIND_PROMPT, 1, self.step, rollout, payload=json.dumps(about).encode()))

    def tokens(self, rollout: int, *pieces: str, bounds: bool = False) -> None:
        count, first = len(pieces), self.told[rollout]
        self.told[rollout] = first + count
        columns = [[1.5] * count, [-1.5] * count, *([[1.25] * count, [1.75] * count] if bounds else [])]
        payload = b"".join([
            struct.pack(f"<{count}I", *range(count)),
            struct.pack(f"<{count}H", *(len(piece.encode()) for piece in pieces)),
            *(struct.pack(f"<{count}e", *column) for column in columns),
            "".join(pieces).encode(),
        ])  # fmt: skip
        self.push(Frame(KIND_BOUNDED if bounds else KIND_TOKENS, 1, self.step, rollout, first, count, payload))

    def end(self, rollout: int, **more) -> None:
        said = {"finish_reason": "stop", **more}
        self.push(Frame(KIND_END, 1, self.step, rollout, payload=json.dumps(said).encode()))

    def usual(self, groups: int = 10) -> None:
        """Ten prompts of four completions, of which those of the first two are shown unasked."""
        self.groups(*({"group": group, "prompt": f"prompt {group}", "size": 4, "done": 0} for group in range(groups)))
        for rollout in range(8):
            self.prompt(rollout, rollout // 4, rollout % 4)
            self.tokens(rollout, "one ", "two ")


@pytest.fixture
def step(run, valkey):
    return Step(run, valkey)


@pytest.fixture
def look(run, open_page):
    def open_as(user, query: str = "?tab=rollouts", **more):
        page = open_page(user, reverse("runs:detail", args=[run.pk]) + query, script=SOCKETS, **more)
        page.wait_for_selector(LIVE)
        return page

    return open_as


def watched(run: Run) -> list[int]:
    return Run.objects.with_watched().values_list("watched", flat=True).get(pk=run.pk)


def wait_watched(page, run: Run, groups: list[int]) -> None:
    for _ in range(200):
        if watched(run) == groups:
            return
        page.wait_for_timeout(40)
    pytest.fail(f"{watched(run)} instead of {groups}")


def shows(page, *texts: str) -> None:
    """Wait until the list shows these completions, in this order."""
    for _ in range(400):
        if (found := page.evaluate(SHOWN)) == list(texts):
            return
        page.wait_for_timeout(40)
    pytest.fail(f"{found} instead of {texts}")


def test_a_prompt_is_chosen_and_remembered_in_the_address(run, alice, look, step):
    page = look(alice)
    step.usual()
    shows(page, *["one two "] * 8)
    assert page.locator(".live-groups .group-entry").count() == 11
    page.click(".live-groups .group-entry:has-text('7 · prompt 7')")
    wait_watched(page, run, [7])
    assert "watch=7" in page.url
    assert page.inner_text("[data-live-waits]") == "Waiting for the first tokens."
    step.prompt(30, 7, 2, picked=True, prompt="prompt 7,\nin full")
    step.tokens(30, "all ", "of it")
    step.tokens(0, "three")
    step.groups({"group": 7, "done": 1})
    shows(page, "all of it")
    assert page.inner_text("[data-live-head]").startswith("prompt 7,")
    eventually(page, "document.querySelector('[data-live-note]').textContent.includes('prompt 7 · 1 of 4 ended')")

    page.reload()
    shows(page, "all of it")
    wait_watched(page, run, [7])
    page.keyboard.press(",")
    assert "watch=6" in page.url
    wait_watched(page, run, [6])
    page.click(".live-groups .group-entry:has-text('Several prompts')")
    shows(page, "one two three", *["one two "] * 7)
    wait_watched(page, run, [])
    assert "watch=" not in page.url


def test_the_choice_outlives_the_step_and_the_next_one_has_other_prompts(run, alice, look, step, valkey):
    page = look(alice, "?tab=rollouts&watch=3")
    step.usual()
    following = Step(run, valkey, 8)
    following.groups({"group": 3, "prompt": "another prompt", "size": 2, "done": 0})
    following.prompt(6, 3, 0, prompt="another prompt", picked=True)
    following.tokens(6, "new")
    shows(page, "new")
    eventually(page, "document.querySelectorAll('.live-groups .group-entry').length === 2")
    assert page.inner_text("[data-live-head]") == "another prompt"


def test_freezing_holds_the_picture_and_counts_what_is_new(run, alice, look, step):
    page = look(alice)
    step.usual()
    shows(page, *["one two "] * 8)
    page.keyboard.press("f")
    step.tokens(0, "three ", "four")
    step.tokens(1, "five")
    eventually(page, "document.querySelector('[data-live-frozen]').textContent === 'Frozen — 3 new tokens'")
    shows(page, *["one two "] * 8)
    page.click("[data-live-frozen]")
    shows(page, "one two three four", "one two five", *["one two "] * 6)
    assert page.is_hidden("[data-live-frozen]")
    step.end(0)
    page.wait_for_selector(".live-row[data-ended]")


def test_a_frozen_view_goes_on_at_the_newest_step(run, alice, look, step, valkey):
    page = look(alice)
    step.usual()
    shows(page, *["one two "] * 8)
    page.click("[data-live-freeze]")
    following = Step(run, valkey, 8)
    following.prompt(0, 0, 0)
    following.tokens(0, "later")
    eventually(page, "document.querySelector('[data-live-frozen]').textContent.endsWith('now at step 8')")
    assert "step 7" in page.inner_text("[data-live-note]")
    page.keyboard.press("f")
    shows(page, "later")


def test_coming_back_leaves_no_gap_and_repeats_nothing(run, alice, look, step):
    page = look(alice, "?tab=rollouts&watch=1")
    step.usual()
    shows(page, *["one two "] * 4)
    page.evaluate("sockets.at(-1).close()")
    for piece in ("three ", "four ", "five "):
        step.tokens(4, piece)
    step.end(4, tail="\ufffd")
    shows(page, "one two three four five \ufffd", *["one two "] * 3)
    assert page.locator(".live-gap").count() == 0
    wait_watched(page, run, [1])
    step.tokens(5, "three")
    shows(page, "one two three four five \ufffd", "one two three", *["one two "] * 2)


def test_a_tab_that_slept_wakes_without_a_gap(run, alice, look, step):
    page = look(alice)
    step.usual()
    shows(page, *["one two "] * 8)
    hidden = "(value) => { Object.defineProperty(document, 'hidden', { value, configurable: true }); }"
    page.evaluate(hidden, True)
    step.tokens(0, "three ")
    page.wait_for_timeout(300)
    assert page.evaluate(SHOWN)[0] == "one two "
    page.evaluate(hidden, False)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    step.tokens(0, "four")
    shows(page, "one two three four", *["one two "] * 7)
    assert page.locator(".live-gap").count() == 0


def test_two_viewers_watch_two_prompts(run, alice, charlie, look, step):
    one, other = look(alice, "?tab=rollouts&watch=4"), look(charlie, "?tab=rollouts&watch=5")
    wait_watched(one, run, sorted(watched(run)))
    step.usual()
    step.prompt(20, 4, 0, picked=True)
    step.prompt(24, 5, 0, picked=True)
    step.tokens(20, "for Alice")
    step.tokens(24, "for Charlie")
    shows(one, "for Alice")
    shows(other, "for Charlie")
    assert set(watched(run)) == {4, 5}
    other.close()
    wait_watched(one, run, [4])


def test_beyond_the_limit_a_viewer_reads_why_and_whom_to_join(run, alice, look, step):
    for group in range(WATCHED_AT_ONCE):
        watch(run.pk, f"page {group}", 10 + group)
    page = look(alice, "?tab=rollouts&watch=2")
    page.wait_for_selector("[data-live-refused]:not([hidden])")
    assert "numbers 10, 11, 12, 13" in page.inner_text("[data-live-refused]")
    Watch.objects.filter(viewer="page 0").delete()
    page.wait_for_selector("[data-live-refused]", state="hidden")


def test_forks_stand_beneath_their_parent_with_the_prefix_dimmed(run, alice, look, step):
    page = look(alice)
    step.prompt(0, 0, 0)
    step.tokens(0, "a", "b", "c")
    step.prompt(1, 0, 1)
    step.tokens(1, "x")
    step.prompt(2, 0, 2, parent=0, fork_at=2, prefix="ab", prefix_tokens=2)
    step.tokens(2, "d")
    step.prompt(3, 0, 3, parent=2, fork_at=3, prefix="abd", prefix_tokens=3)
    step.tokens(3, "e")
    step.prompt(4, 0, 4, parent=0, fork_at=1, prefix="a", prefix_tokens=1)
    step.tokens(4, "f")
    shows(page, "abc", "d", "e", "f", "x")
    rows = page.locator(".live-row")
    prefixes = [row.locator(".live-prefix").all_inner_texts() for row in rows.all()]
    assert prefixes == [[], ["ab"], ["abd"], ["a"], []]
    assert [row.evaluate("(row) => row.style.getPropertyValue('--depth')") for row in rows.all()] == list("01210")
    assert "2 tokens shared" in rows.nth(1).locator(".live-prefix").get_attribute("title")
    assert page.locator(".live-gap").count() == 0


def test_bounds_of_the_entropy_are_called_bounds(run, alice, look, step):
    page = look(alice)
    step.prompt(0, 0, 0)
    step.tokens(0, "word", bounds=True)
    shows(page, "word")
    assert "bounds" in page.get_attribute("[data-live-bounds]", "title")
    box = page.evaluate(
        """() => { const box = document.querySelector(".live-text").tokenText.rangeOf(0).getBoundingClientRect();
           return [box.left + box.width / 2, box.top + box.height / 2]; }"""
    )
    page.mouse.move(*box)
    page.wait_for_selector(".token-tooltip:not([hidden])")
    tooltip = page.inner_text(".token-tooltip")
    assert "between 1.25 and 1.75 nats (top-k bounds)" in tooltip
    assert "1.5 nats, the middle of the bounds" in tooltip


def test_long_completions_keep_a_bounded_ring_and_say_so(run, alice, look, step):
    page = look(alice)
    step.prompt(0, 0, 0)
    for _ in range(20):
        step.tokens(0, *["x"] * 999, "\n")
    step.tokens(0, "end")
    eventually(page, "document.querySelector('.live-facts')?.textContent.startsWith('20001 tok')")
    kept = page.evaluate("document.querySelector('.live-text').tokenText.count")
    assert kept <= 2 * 4096 + 2000
    assert page.evaluate("document.querySelector('.live-text').textContent.endsWith('end')")
    page.click(".live-groups .group-entry")  # shown anew: the ring alone
    page.keyboard.press(".")


def test_a_gap_is_shown_where_it_is(run, alice, look, step):
    page = look(alice)
    step.prompt(0, 0, 0)
    step.tokens(0, "before ")
    step.told[0] += 5
    step.tokens(0, "behind")
    shows(page, "before …behind")
    assert "5 tokens" in page.get_attribute(".live-gap", "title")


def test_any_text_arrives_whole(run, alice, look, step):
    page = look(alice)
    step.prompt(0, 0, 0, prompt="<script>window.hacked = 1</script>")
    step.tokens(0, "\ufeff", "", "", "👩\u200d👩", "\u200d👧 ", "数")
    step.tokens(0, "\ufeff字")
    step.tokens(0, "<img src=x onerror='window.hacked = 1'>")
    shows(page, "‹BOM›👩‹ZWJ›👩‹ZWJ›👧 数‹BOM›字<img src=x onerror='window.hacked = 1'>")
    assert page.evaluate("window.hacked") is None


def test_there_are_at_most_ten_paints_a_second(run, alice, look, step):
    page = look(alice)
    step.usual()
    for _ in range(60):
        step.tokens(0, "x")
        page.wait_for_timeout(10)
    eventually(page, "document.querySelector('.live-facts').textContent.startsWith('62 tok')")
    paints = page.evaluate("paints")
    assert min(later - earlier for earlier, later in itertools.pairwise(paints)) > 95
