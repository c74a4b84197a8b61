"""How late viewers are: `python bench/live_latency.py [--trainer tokens] [--viewers 3] [--seconds 60]`.

The whole stack runs: run folder → worker → PostgreSQL and Valkey → uvicorn → websocket → Chromium. Both clocks are this
machine's.

`tokens`: the demo run under the real trainer and several pages, each of which watches something else. A latency is the
time at which a page has painted a token, minus the time at which the trainer drew it.
`metronome`: a stand-in writes an event and a frame at a fixed pace and leaves the machine idle. `real`: the demo run.
There a latency is the time at which the page handles `run:events` or `run:frames`, minus the time of the write.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from _shared import Stack, browser_page, machine, spread, stack, table, until

HERE = Path(__file__).parent
LISTEN = """
window.late = { events: [], frames: [], painted: [] };
const now = () => (performance.timeOrigin + performance.now()) / 1000;
const received = new Map(); // by step, completion and first token: when the broker took a frame, and when it was here
const key = (...parts) => parts.join();
window.WebSocket = class extends WebSocket {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", ({ data }) => typeof data === "string" || arrived(data));
  }
};
function arrived(data) {
  const at = now(), length = new Uint8Array(data, 0, 1)[0], view = new DataView(data);
  const taken = parseInt(new TextDecoder().decode(new Uint8Array(data, 1, length))) / 1000;
  for (let head = 1 + length; head + 28 <= data.byteLength; head += 28 + view.getUint32(head + 24, true)) {
    const [step, rollout, first] = [8, 12, 16].map((offset) => view.getUint32(head + offset, true));
    if (view.getUint8(head + 3) === 2) received.set(key(step, rollout, first), [taken, at]);
  }
}
document.addEventListener("run:events", ({ detail }) => {
  const at = now();
  for (const { time } of detail) window.late.events.push([time, at]);
});
document.addEventListener("run:frames", ({ detail }) => {
  const at = now(), seen = [];
  for (const { kind, step, rollout, first, count, payload } of detail) {
    if (payload.sent) window.late.frames.push([payload.sent, at]);
    if (kind === 2) seen.push([step, rollout, first, count, ...received.get(key(step, rollout, first)), at]);
  }
  // The first task behind the frame that draws it: by then it is on the screen.
  requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { const done = now(); for (const one of seen) window.late.painted.push([...one, done]); };
    port2.postMessage(0);
  });
});
"""
STAGES = [
    "to the file",  # from the draw: the engine tells chunks of tokens now and then
    "to the broker",  # the worker looks at the file now and then; the id of the entry is the broker's time
    "to the page",  # web process, socket, and the page has time for it
    "to its turn",  # the page collects what it paints at most ten times a second
    "to the screen",
]
NOW = "(performance.timeOrigin + performance.now()) / 1000"


def latencies(page: Any, kind: str, since: float) -> list[float]:
    """Return milliseconds of all that was written after `since`."""
    return [1000 * (seen - written) for written, seen in page.evaluate(f"window.late.{kind}") if written > since]


def opened(page: Any, address: str) -> float:
    """Open a run's page and let it settle; return the second from which on it counts."""
    page.add_init_script(LISTEN)
    page.goto(address)
    page.wait_for_selector('[data-run-connection][data-state="live"]')
    # What was written before the page was live is history, and the first moments go to drawing the page.
    page.wait_for_timeout(3000)
    return page.evaluate(NOW)


def writes(trainer: str, wanted: int) -> list[list[str]]:
    """Watch one run until `wanted` events came; return rows of the table."""
    command = {"metronome": shlex.join([sys.executable, str(HERE / "_metronome.py")]), "real": ""}[trainer]
    with stack("--demo", ISENTROPE_TRAINER=command) as running, browser_page(running) as page:
        since = opened(page, running.demo)
        until(lambda: len(latencies(page, "events", since)) >= wanted, seconds=540, what=f"{wanted} events")
        names = {"events": f"events, {trainer}", "frames": f"live frames, {trainer}"}
        found = {names[kind]: latencies(page, kind, since) for kind in names}
    return [[name, *spread(values)] for name, values in found.items() if values]


def stamps(running: Stack) -> Iterator[tuple[tuple[int, int, int], float, float]]:
    """Yield (step, completion, place), when it was drawn and when it was written, for each token told."""
    run_id = running.demo.rstrip("/").rsplit("/", 1)[-1]
    for line in (running.run_folder(run_id) / "stamps.jsonl").read_text().splitlines():
        step, rollout, first, drawn, written = json.loads(line)
        for place, at in enumerate(drawn):
            yield (step, rollout, first + place), at, written


def tokens(viewers: int, seconds: int) -> list[list[str]]:
    """Let several pages watch different prompts of the demo run; return rows of the table."""
    command = shlex.join([sys.executable, str(HERE / "_stamped.py")])
    with stack("--demo", ISENTROPE_TRAINER=command) as running, ExitStack() as open_pages:
        first = open_pages.enter_context(browser_page(running))
        pages = [first, *(another(first) for _ in range(viewers - 1))]
        watched = ["", *(f"&watch={group}" for group in range(1, viewers))]
        for page, choice in zip(pages, watched, strict=True):
            opened(page, f"{running.demo}?tab=rollouts{choice}")
        for page in pages:
            page.wait_for_selector(".live-row .tokens-chunk", timeout=300_000)
        since = first.evaluate(NOW)
        first.wait_for_timeout(1000 * seconds)
        painted = [page.evaluate("window.late.painted") for page in pages]
        load, paints = os.getloadavg()[0], [len({at for *_, at in seen}) / seconds for seen in painted]
        known = {key: (drawn, written) for key, drawn, written in stamps(running)}
    stages: list[list[float]] = [[] for _ in STAGES]
    whole: list[float] = []
    for step, rollout, start, count, *passed in (one for seen in painted for one in seen):
        for place in range(start, start + count):
            drawn, written = known.get((step, rollout, place), (0.0, 0.0))
            if drawn < since:
                continue
            times = [drawn, written, *passed]
            whole.append(1000 * (times[-1] - drawn))
            for stage, (begin, end) in zip(stages, pairwise(times), strict=True):
                stage.append(1000 * (end - begin))
    print(f"{viewers} viewers, {max(paints):.1f} paints a second at most, load {load:.1f} at the end\n")
    found = zip([f"… {name}" for name in STAGES], stages, strict=True)
    return [[name, *spread(values)] for name, values in [("token drawn to painted", whole), *found] if values]


def another(page: Any) -> Any:
    """Return a page in a window of its own, signed in as the same person."""
    context = page.context.browser.new_context(
        viewport={"width": 1400, "height": 900}, storage_state=page.context.storage_state()
    )
    fresh = context.new_page()
    fresh.set_default_timeout(120_000)
    return fresh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", choices=["tokens", "metronome", "real"], nargs="+", default=["tokens"])
    parser.add_argument("--events", type=int, default=200, help="how many to wait for, under metronome and real")
    parser.add_argument("--viewers", type=int, default=3, help="pages that watch, under tokens")
    parser.add_argument("--seconds", type=int, default=60, help="how long they watch")
    options = parser.parse_args()
    print(machine(), end="\n\n")
    rows = [
        row
        for trainer in options.trainer
        for row in (
            tokens(options.viewers, options.seconds) if trainer == "tokens" else writes(trainer, options.events)
        )
    ]
    print(table(["from write to browser, ms", "count", "median", "p95", "max"], rows))


if __name__ == "__main__":
    main()
