"""A step of 64 completions of 4,096 tokens in the reader: `python bench/heatmap.py [--rounds 5]`.

A fabricated run on the whole stack, opened in Chromium with all prompts shown. Times are the browser's own; paints
are taken at the second animation frame after the change, when the first one has surely been drawn.
"""

from __future__ import annotations

import argparse
import random
import statistics
from typing import Any

from _shared import browser_page, django_of, machine, quantile, stack, table

GROUPS, SAMPLES, TOKENS, STEP = 8, 8, 4096, 6
COLOURED = """
window.first = null;
const look = () => {
  const coloured = [...CSS.highlights].some(([name, ranges]) => name.includes("heat") && ranges.size);
  if (coloured) requestAnimationFrame(() => { window.first = performance.now(); });
  else requestAnimationFrame(look);
};
look();
"""
BUNDLE = """async () => {
  const { decodeBundle } = await import("/static/js/run/bundle.js");
  const { urls } = JSON.parse(document.getElementById("run-data").textContent);
  const url = urls.rollout.replace("/0/", "/STEP/") + `?fresh=${Math.random()}`;
  const began = performance.now();
  const buffer = await (await fetch(url, { cache: "no-store" })).arrayBuffer();
  const read = performance.now();
  decodeBundle(buffer);
  const decoded = performance.now();
  const [entry] = performance.getEntriesByName(new URL(url, location).href);
  return { bytes: buffer.byteLength, sent: entry.encodedBodySize, server: entry.responseStart - entry.requestStart,
           fetch: read - began, decode: decoded - read };
}""".replace("STEP", str(STEP))
RECOLOUR = """async (mode) => {
  const frame = () => new Promise(requestAnimationFrame);
  const select = document.querySelector("[data-reader-colour]");
  await frame();
  const began = performance.now();
  select.value = mode;
  select.dispatchEvent(new Event("change", { bubbles: true }));
  const worked = performance.now() - began;
  await frame(); await frame();
  return { worked, painted: performance.now() - began };
}"""
SCROLL = """async (frames) => {
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  scrollTo(0, 0);
  await frame();
  let last = await frame();
  for (let i = 0; i < frames; i += 1) {
    scrollBy(0, 300);
    const now = await frame();
    times.push(now - last);
    last = now;
  }
  return { times, scrolled: scrollY, height: document.documentElement.scrollHeight };
}"""


def fabricate() -> str:
    """Make the run in the stack's database and return its page's path."""
    from tests.fabricate import essays, fabricate_run, write_rollouts
    from webapp.accounts.models import User

    run = fabricate_run(User.objects.get(username="admin"), steps=STEP, rewound=False)
    write_rollouts(run.folder.rollout_file(STEP), essays(random.Random(1), GROUPS, SAMPLES, TOKENS))
    return f"/runs/{run.pk}/?tab=rollouts&group=all&step={STEP}"


def measure(page: Any, url: str, rounds: int) -> list[tuple[str, str]]:
    """Return rows of (what, figure)."""
    page.add_init_script(COLOURED)
    opened, bundles, recoloured = [], [], []
    for _ in range(rounds):
        page.goto(url)
        page.wait_for_function("() => window.first !== null")
        page.wait_for_selector(".rollout-text")
        opened.append(page.evaluate("window.first"))
        bundles.append(page.evaluate(BUNDLE))
        recoloured += [page.evaluate(RECOLOUR, mode) for mode in ("weight", "surprisal", "entropy")]
    at_first = page.evaluate("document.querySelectorAll('*').length")
    scroll = page.evaluate(SCROLL, 400)
    frames = scroll["times"]
    names = ("server", "fetch", "decode")
    server, fetch, decode = (statistics.median(bundle[name] for bundle in bundles) for name in names)
    return [
        ("bundle, as decoded", f"{bundles[0]['bytes'] / 2**20:.1f} MiB"),
        ("bundle, as sent", f"{bundles[0]['sent'] / 2**20:.1f} MiB"),
        ("server: request to first byte", f"{server:.0f} ms"),
        ("fetch, whole body", f"{fetch:.0f} ms"),
        ("decode", f"{decode:.0f} ms"),
        ("navigation to first coloured tokens", f"{statistics.median(opened):.0f} ms"),
        ("recolour: script", f"{statistics.median(one['worked'] for one in recoloured):.0f} ms"),
        ("recolour: painted", f"{statistics.median(one['painted'] for one in recoloured):.0f} ms"),
        ("scroll, median frame", f"{statistics.median(frames):.0f} ms"),
        ("scroll, p95 frame", f"{quantile(frames, 0.95):.0f} ms"),
        ("scroll, worst frame", f"{max(frames):.0f} ms"),
        ("scrolled", f"{scroll['scrolled']:,.0f} of {scroll['height']:,.0f} px"),
        ("elements of the page after opening", f"{at_first:,}"),
        ("elements of the page after scrolling", f"{page.evaluate('document.querySelectorAll(`*`).length'):,}"),
        ("completions made after scrolling", f"{page.evaluate('document.querySelectorAll(`.rollout`).length')}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine(), end="\n\n")
    with stack() as running:
        django_of(running)
        path = fabricate()
        with browser_page(running) as page:
            rows = measure(page, running.url + path, options.rounds)
    print(table([f"{GROUPS * SAMPLES} completions of {TOKENS:,} tokens", ""], rows))


if __name__ == "__main__":
    main()
