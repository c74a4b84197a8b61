"""The run page in a real browser: charts, the token heatmap, live frames, steering, hostile text."""

from __future__ import annotations

import json
import random
import struct

import pytest
from django.urls import reverse

from tests.e2e.conftest import eventually
from tests.fabricate import HOSTILE, char_tokens, completion_row, essays, fabricate_run, write_rollouts
from trainer.events import KIND_END, KIND_PROMPT, KIND_TOKENS, Frame, progress
from webapp.runs import live
from webapp.runs.models import Event, Run, State

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

READY = "html[data-run-ready]"


@pytest.fixture
def run(alice, server):
    return fabricate_run(alice, steps=6, rewound=False)


def url(run: Run, query: str = "") -> str:
    return reverse("runs:detail", args=[run.pk]) + query


def record(run: Run, step: int, rows) -> None:
    """Replace the rollouts of a step."""
    write_rollouts(run.folder.rollout_file(step), rows)


def ingest(run: Run, *events: tuple[str, dict]) -> None:
    """Do what the worker's ingest does with new events: rows first, then the notification."""
    for kind, data in events:
        run.refresh_from_db()
        Event.objects.create(
            run=run, seq=run.last_seq + 1, attempt=run.attempt, step=data.pop("step"), type=kind,
            time=run.heartbeat_at, data=data,
        )  # fmt: skip
        Run.objects.filter(pk=run.pk).update(last_seq=run.last_seq + 1)
    live.notify(run.pk)


def tokens_frame(step: int, rollout: int, first: int, pieces: list[str]) -> Frame:
    """Return the frame that the trainer would write for some tokens."""
    count = len(pieces)
    payload = b"".join(
        [
            struct.pack(f"<{count}I", *range(count)),
            struct.pack(f"<{count}H", *(len(piece.encode()) for piece in pieces)),
            struct.pack(f"<{count}e", *([2.5] * count)),
            struct.pack(f"<{count}e", *([-1.5] * count)),
            "".join(pieces).encode(),
        ]
    )
    return Frame(KIND_TOKENS, 1, step, rollout, first, count, payload)


def highlighted(page) -> int:
    """Count the ranges that are coloured now."""
    return page.evaluate(
        "[...CSS.highlights].filter(([n]) => n.includes('heat')).reduce((sum, [, h]) => sum + h.size, 0)"
    )


def test_page_draws_charts_and_coloured_rollouts(run, alice, open_page):
    page = open_page(alice, url(run))
    page.wait_for_selector('[data-chart="entropy"] canvas')
    assert "mean" in page.inner_text('[data-chart="entropy"] [data-chart-readout]')
    page.wait_for_selector(".rollout-text")
    eventually(page, "[...CSS.highlights].some(([name, h]) => name.startsWith('heat') && h.size)")
    page.wait_for_selector('[data-run-connection][data-state="live"]')


def test_hover_tells_the_token(run, alice, open_page):
    row = completion_row(
        random.Random(1), 0, 0, "prompt", char_tokens("abc数d"), 1.0, entropy=[0.0, 2.25, 0.5, 1.0, 0.1]
    )
    record(run, 6, [row])
    page = open_page(alice, url(run, "?tab=rollouts"))
    page.wait_for_selector(".rollout-text")
    for text, entropy in (("b", "2.25"), ("数", "1"), ("d", "0.1")):
        box = page.evaluate(
            """(wanted) => { const text = document.querySelector(".rollout-text").tokenText;
               const at = [...Array(text.count).keys()].find((t) => text.textOf(t) === wanted);
               const { left, top, width, height } = text.rangeOf(at).getBoundingClientRect();
               return [left + width * 0.75, top + height / 2]; }""",
            text,
        )
        page.mouse.move(*box)
        eventually(page, "(name) => document.querySelector('.token-tooltip .token-name')?.textContent === name", text)
        assert f"{entropy} nats" in page.inner_text(".token-tooltip")
    page.mouse.click(*box)
    assert "Probability" in page.inner_text("[data-token-card]")
    assert "token=4" in page.url


def test_slider_changes_the_step_and_the_address(run, alice, open_page):
    page = open_page(alice, url(run, "?tab=rollouts"))
    eventually(page, "document.querySelector('[data-reader-step]').textContent === 'Step 6'")
    page.wait_for_selector(".rollout")
    page.evaluate("""() => { const slider = document.querySelector("[data-reader-slider]");
                             slider.value = 2; slider.dispatchEvent(new Event("input", { bubbles: true })); }""")
    eventually(page, "document.querySelector('[data-reader-step]').textContent === 'Step 3'")
    assert "step=3" in page.url
    page.keyboard.press("]")
    page.wait_for_url("**step=4**")


def test_deep_link_restores_step_group_colour_and_token(run, alice, open_page):
    page = open_page(alice, url(run, "?tab=rollouts&step=2&group=1&colour=weight&rollout=7&token=1"))
    page.wait_for_selector("#rollout-7.is-current")
    assert page.inner_text("[data-reader-step]") == "Step 2"
    assert page.input_value("[data-reader-colour]") == "weight"
    assert "2 of" in page.inner_text("[data-token-card]")


def test_hostile_completion_is_text(run, alice, open_page):
    record(run, 6, [completion_row(random.Random(1), 0, 0, HOSTILE, char_tokens(HOSTILE), 1.0)])
    page = open_page(alice, url(run, "?tab=rollouts"))
    page.wait_for_selector(".rollout-text")
    shown = page.text_content(".rollout-text")
    assert "<script>window.hacked = 1</script>" in shown
    for sign in ("‹RLO›", "‹ZWSP›", "␇", "␛[31m", "⇥", "↵", "‹ZWJ›"):
        assert sign in shown
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('.rollout-text :not(.tokens-chunk)').length") == 0


def test_live_frames_arrive_token_by_token(run, alice, open_page, valkey):
    page = open_page(alice, url(run))
    page.wait_for_selector('[data-run-connection][data-state="live"]')

    def push(*frames: Frame) -> None:
        valkey.xadd(live.stream(run.pk), {"f": b"".join(frame.encode() for frame in frames)})

    prompt = json.dumps({"group": 0, "sample": 0, "prompt": "<i>17+4=</i>"}).encode()
    push(Frame(KIND_PROMPT, 1, 7, 0, payload=prompt), tokens_frame(7, 0, 0, ["2", "1 ", "数"]))
    eventually(page, "document.querySelector('.live-text')?.textContent === '21 数'")
    push(
        tokens_frame(7, 0, 3, ["!"]),
        progress(1, 7, "sample", 3, 64),
        Frame(KIND_END, 1, 7, 0, payload=b'{"finish_reason": "stop"}'),
    )
    page.wait_for_selector(".live-row[data-ended]")
    assert page.text_content(".live-text") == "21 数!"
    assert page.text_content(".live-prompt") == "<i>17+4=</i>"
    eventually(page, "document.querySelector('[data-run-phase]').textContent === 'sample 3 of 64'")
    assert page.text_content(".live-text .heat14") == "2"

    Run.objects.filter(pk=run.pk).update(state=State.FINISHED)
    live.notify(run.pk)
    page.wait_for_selector("[data-live]", state="hidden")


def test_new_events_extend_charts_and_freeze_counts_them(run, alice, open_page):
    page = open_page(alice, url(run, "?step=2"))
    page.wait_for_selector('[data-chart="reward"] canvas')
    page.wait_for_selector('[data-run-connection][data-state="live"]')
    record(run, 7, essays(random.Random(2), 1, 2, 5))
    ingest(
        run,
        ("metrics", {"step": 7, "values": {"reward/mean": 0.987, "entropy/mean": 0.5}}),
        (
            "rollouts",
            {"step": 7, "path": "rollouts/step-00000007.parquet", "completions": 2, "tokens": 10, "bytes": 10},
        ),
        ("alert", {"step": 7, "code": "collapse", "message": "Entropy fell to half of its start."}),
    )
    eventually(page, "document.querySelector('[data-chart=reward] [data-chart-readout]').textContent.includes('0.987')")
    eventually(page, "document.querySelector('[data-reader-frozen]').textContent === 'Frozen: 1 new'")
    page.click("[data-reader-frozen]")
    eventually(page, "document.querySelector('[data-reader-step]').textContent === 'Step 7'")
    assert "step=" not in page.url
    page.click('[data-tab="timeline"]')
    page.wait_for_selector("text=Entropy fell to half of its start.")


def test_reconnect_brings_what_was_missed(run, alice, open_page):
    page = open_page(alice, url(run))
    page.wait_for_selector('[data-chart="reward"] canvas')
    page.wait_for_selector('[data-run-connection][data-state="live"]')
    page.problems.clear()
    page.context.set_offline(True)
    ingest(run, ("metrics", {"step": 7, "values": {"reward/mean": 0.456}}))
    page.context.set_offline(False)
    page.evaluate("window.dispatchEvent(new Event('online'))")
    eventually(page, "document.querySelector('[data-chart=reward] [data-chart-readout]').textContent.includes('0.456')")
    page.problems.clear()


def test_steering_is_pending_until_the_event_comes(run, alice, open_page):
    page = open_page(alice, url(run))
    page.wait_for_selector('[data-run-connection][data-state="live"]')
    page.fill('[data-knob="entropy_target"] input[name=value]', "99")
    page.click('[data-knob="entropy_target"] button')
    page.wait_for_selector("text=it must be between 0 and 20")
    page.fill('[data-knob="entropy_target"] input[name=value]', "0.75")
    page.click('[data-knob="entropy_target"] button')
    page.wait_for_selector("text=0.75 takes effect at the next step")
    run.refresh_from_db()
    assert run.control_knobs == {"entropy_target": 0.75}
    ingest(
        run,
        (
            "knob",
            {
                "step": 7,
                "name": "entropy_target",
                "old": 0.5,
                "new": 0.75,
                "source": "user",
                "control_seq": run.control_seq,
            },
        ),
    )
    page.wait_for_selector('[data-knob="entropy_target"] [data-knob-pending]', state="hidden")
    assert page.inner_text('[data-knob="entropy_target"] [data-knob-value]') == "0.75"
    page.problems.clear()  # the refused request is an error line in the console


def test_stop_asks_and_changes_the_state(run, alice, open_page):
    page = open_page(alice, url(run))
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("text=Stop")
    page.wait_for_selector('[data-state="stopping"]')


def test_long_completions_stay_responsive(run, alice, open_page):
    """A step of 16 completions of 4,096 tokens shows as far as one reads, recolours and keeps few elements."""
    record(run, 6, essays(random.Random(3), 2, 8, 4096))
    page = open_page(alice, url(run, "?tab=rollouts&group=all"))
    page.wait_for_selector(".rollout")
    cards, elements = page.evaluate(
        "['.rollout', '.rollout-text *'].map((all) => document.querySelectorAll(all).length)"
    )
    assert cards < 16
    assert elements == cards * 16
    eventually(page, "scrollTo(0, document.body.scrollHeight) || document.querySelectorAll('.rollout').length === 16")
    page.evaluate("scrollTo(0, 0)")
    page.select_option("[data-reader-colour]", "weight")
    eventually(page, "[...CSS.highlights].some(([name, h]) => /^(up|down)/.test(name) && h.size)")
    assert highlighted(page) == 0


def test_scale_is_the_published_one(run, alice, open_page):
    """16 bins over 0 to 3 nats at 3 (b / 16)^2; brightness is monotonic, text contrast 4.5 or more."""
    page = open_page(alice, url(run))
    for theme in ("light", "dark"):
        worst = page.evaluate(
            """async (theme) => { const { contrast, palette } = await import("/static/js/run/scale.js");
               const bins = Object.entries(palette(theme));
               const all = bins.map(([name, bin]) => [contrast(bin.background, bin.colour), name]);
               return all.sort((a, b) => a[0] - b[0])[0]; }""",
            theme,
        )
        assert worst[0] >= 4.5, worst
    edges, bins, steady = page.evaluate(
        """async () => { const scale = await import("/static/js/run/scale.js");
           const at = (theme, b) => scale.luminance(scale.palette(theme)[`heat${b + 1}`].background);
           const shades = (theme) => [...Array(15).keys()].map((b) => at(theme, b));
           const falls = (list) => list.every((value, at) => at === 0 || value < list[at - 1]);
           const bins = [0, 0.011, 0.012, 2.63, 2.64, 99].map((value) => scale.sequentialBin(value, 3));
           return [scale.edges("entropy"), bins,
                   falls(shades("light")) && falls(shades("dark").reverse())]; }"""
    )
    assert edges == pytest.approx([3 * (b / 16) ** 2 for b in range(16)])
    assert bins == [0, 0, 1, 14, 15, 15]
    assert steady


def test_browsers_without_highlights_get_spans(run, alice, open_page):
    page = open_page(alice, url(run, "?tab=rollouts"), script="delete window.Highlight")
    page.wait_for_selector('.rollout-text span[class*="heat"]')
    text = page.evaluate("document.querySelector('.rollout-text').tokenText.shown")
    assert page.text_content(".rollout-text") == text
