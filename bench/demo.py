"""How long the demo takes: `python bench/demo.py`, from starting `manage.py up --demo` in an empty folder to its end.

Nobody watches, except for the moments in which the page is opened; the installation is not counted.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

from _shared import browser_page, machine, stack, table, until


def main() -> None:
    print(machine(), end="\n\n")
    began = time.time()
    with stack("--demo") as running:
        greeted = time.time()
        run = running.demo.rstrip("/").rpartition("/")[2]
        with browser_page(running) as page:
            page.wait_for_selector('[data-run-connection][data-state="live"]')
            live = time.time()
            page.wait_for_function("() => parseInt(document.querySelector('[data-run-step]').textContent) >= 1")
            moving = time.time()
        (ended,) = until(lambda: running.events(run, "finished"), seconds=1800, what="the end of the run")
        steps = [event["time"] for event in running.events(run, "metrics") if "time/step" in event["values"]]
        started = running.events(run, "started")[0]["time"]
    gaps = [after - before for before, after in pairwise(steps)]
    rows = [
        ("address and login link printed", f"{greeted - began:.1f} s"),
        ("signed in, page live", f"{live - began:.1f} s"),
        ("first step on the page", f"{moving - began:.1f} s"),
        ("the run: trainer's start to its end", f"{ended['time'] - started:.0f} s"),
        ("steps", str(len(steps))),
        ("median step", f"{statistics.median(gaps):.2f} s"),
    ]
    print(table(["after `manage.py up --demo`", ""], rows))


if __name__ == "__main__":
    main()
