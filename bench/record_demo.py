"""Pictures of a live demo run for the README: `python bench/record_demo.py [--out docs/images]`.

Starts the demo on a fresh stack, follows it in Chromium, steers the target half-way and writes run.png, run-dark.png
and demo.gif. Nothing is staged but the crop: what the animation leaves out is hidden, not changed.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from _shared import ROOT, browser_page, stack, until
from PIL import Image

STEER_AT, STOP_AT = 60, 140  # steps
TARGET = "0.45"  # nats, asked for at STEER_AT
WIDTH, HEIGHT = 1400, 1448  # of the pictures
FRAME_SIZE = (900, 511)  # of the animation
FRAMES, FRAME_MS = 42, 230
COLOURS = 96
# The animation shows head, two charts and live completions. A style sheet, because the page draws parts of itself anew.
HIDE = """() => {
  const parts = [".run-tabs", ".steering", ".chart-controls", ".all-metrics", ".reader", ".chart:nth-child(n+3)",
                 ".navbar", ".run-facts", ".run-actions", ".live-row:nth-child(n+13)"];
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(`:is(${parts.join(",")}) { display: none !important }`);
  document.adoptedStyleSheets = [sheet];
}"""


def step_of(page: Any) -> int:
    """Return the step that the page shows, 0 before the first."""
    head = page.inner_text("[data-run-step]").split("/")[0].strip()
    return int(head) if head.isdigit() else 0


def wait_for_step(page: Any, due: float) -> int:
    """Return the page's step once it is at least `due`."""
    return until(lambda: step if (step := step_of(page)) >= due else 0, seconds=120, what=f"step {due:.0f}")


def shot(page: Any, *, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    clip = {"x": 0, "y": 0, "width": width, "height": height}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def steer(page: Any) -> None:
    page.fill('[data-knob="entropy_target"] input[name=value]', TARGET)
    page.click('[data-knob="entropy_target"] button')


def animate(still: Any, moving: Any, every: float) -> list[Image.Image]:
    """Take frames of the moving page from the first step to STOP_AT, steering on the other page on the way."""
    frames, steered, due = [], False, 1.0
    while len(frames) < FRAMES:
        step = wait_for_step(moving, due)
        frames.append(shot(moving, width=1100, height=624))
        due = step + every
        if step >= STEER_AT and not steered:
            steer(still)
            steered = True
        if step >= STOP_AT:
            break
    return frames


def save_picture(image: Image.Image, path: Path) -> None:
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, {image.width} x {image.height}")


def save_animation(frames: list[Image.Image], path: Path) -> None:
    """Write the frames with one palette, so that only what changed costs bytes; the last one stays for a moment."""
    small = [frame.resize(FRAME_SIZE, Image.Resampling.LANCZOS) for frame in frames]
    few = small[:: max(1, len(small) // 5)]
    sample = Image.new("RGB", (FRAME_SIZE[0], FRAME_SIZE[1] * len(few)))
    for index, frame in enumerate(few):
        sample.paste(frame, (0, index * FRAME_SIZE[1]))
    palette = sample.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in small]
    times = [FRAME_MS] * (len(flat) - 1) + [1500]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=times, loop=0, optimize=False)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {len(flat)} frames, {sum(times) / 1000:.1f} s")


def open_run(context: Any, url: str) -> Any:
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.wait_for_selector('[data-run-connection][data-state="live"]', state="attached")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with stack("--demo") as running, browser_page(running, width=WIDTH, height=HEIGHT) as page:
        moving = open_run(page.context, running.demo)
        moving.set_viewport_size({"width": 1100, "height": 800})
        moving.evaluate(HIDE)
        page.goto(running.demo)
        frames = animate(page, moving, every=STOP_AT / FRAMES)
        save_animation(frames, options.out / "demo.gif")
        for scheme, name in (("light", "run.png"), ("dark", "run-dark.png")):
            page.emulate_media(color_scheme=scheme)
            page.mouse.move(5, 5)
            page.wait_for_timeout(1500)
            save_picture(shot(page), options.out / name)


if __name__ == "__main__":
    main()
