"""From the trainer's write to the browser's event: `python bench/live_latency.py [--events 200] [--trainer real]`.

The whole stack runs: run folder → worker → PostgreSQL and Valkey → uvicorn → websocket → Chromium. A latency is the
time at which the page handles `run:events` or `run:frames`, minus the time at which the trainer wrote. Both clocks
are this machine's. `metronome` is a stand-in that writes at a fixed pace and leaves the machine idle; `real` is the
demo run, whose trainer keeps a core busy. Live frames of the real trainer carry no time and are not measured.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from _shared import browser_page, machine, spread, stack, table, until

METRONOME = Path(__file__).with_name("_metronome.py")
LISTEN = """
window.late = { events: [], frames: [] };
const now = () => (performance.timeOrigin + performance.now()) / 1000;
document.addEventListener("run:events", ({ detail }) => {
  const at = now();
  for (const { time } of detail) window.late.events.push([time, at]);
});
document.addEventListener("run:frames", ({ detail }) => {
  const at = now();
  for (const { payload } of detail) if (payload.sent) window.late.frames.push([payload.sent, at]);
});
"""


def latencies(page: Any, kind: str, since: float) -> list[float]:
    """Return milliseconds of all that was written after `since`."""
    return [1000 * (seen - written) for written, seen in page.evaluate(f"window.late.{kind}") if written > since]


def measure(trainer: str, wanted: int) -> list[list[str]]:
    """Watch one run until `wanted` events came; return rows of the table."""
    command = {"metronome": shlex.join([sys.executable, str(METRONOME)]), "real": ""}[trainer]
    with stack("--demo", ISENTROPE_TRAINER=command) as running, browser_page(running) as page:
        page.add_init_script(LISTEN)
        page.goto(running.demo)
        page.wait_for_selector('[data-run-connection][data-state="live"]')
        # What was written before the page was live is history, and the first moments go to drawing the page.
        page.wait_for_timeout(3000)
        since = page.evaluate("(performance.timeOrigin + performance.now()) / 1000")
        until(lambda: len(latencies(page, "events", since)) >= wanted, seconds=540, what=f"{wanted} events")
        names = {"events": f"events, {trainer}", "frames": f"live frames, {trainer}"}
        found = {names[kind]: latencies(page, kind, since) for kind in names}
    return [[name, *spread(values)] for name, values in found.items() if values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--trainer", choices=["metronome", "real", "both"], default="metronome")
    options = parser.parse_args()
    print(machine(), end="\n\n")
    trainers = ["metronome", "real"] if options.trainer == "both" else [options.trainer]
    rows = [row for trainer in trainers for row in measure(trainer, options.events)]
    print(table(["from write to browser, ms", "count", "median", "p95", "max"], rows))


if __name__ == "__main__":
    main()
