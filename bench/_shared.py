"""What the benches share: a stack with a signed-in browser page, percentiles, Markdown tables, the machine's name."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.e2e.stack import Stack, sign_in, stack, until  # noqa: E402  (the path comes first)

__all__ = ["ROOT", "Stack", "browser_page", "django_of", "machine", "quantile", "spread", "stack", "table", "until"]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu"]


@contextmanager
def browser_page(stack: Stack, *, width: int = 1400, height: int = 900, scheme: str = "light") -> Iterator[Any]:
    """Open a headless Chromium signed in as the stack's admin; yield its page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(120_000)
        sign_in(page, stack)
        yield page
        browser.close()


def django_of(stack: Stack) -> None:
    """Set Django up in this process on the database and folders of a stack; once a process, before any browser."""
    services = json.loads((stack.home / "services.json").read_text())
    os.environ |= {**services, "ISENTROPE_HOME": str(stack.home), "DJANGO_SETTINGS_MODULE": "webapp.settings"}
    import django

    django.setup()


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float]) -> list[str]:
    """Return count, median, p95 and the largest value, in whole units."""
    figures = (statistics.median(values), quantile(values, 0.95), max(values))
    return [str(len(values)), *(f"{figure:.0f}" for figure in figures)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def machine() -> str:
    """Return one line: date, cores, load and versions, so that a figure can be judged."""
    load = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {_gpu()}, load {load:.1f} before the start, "
        f"Python {platform.python_version()}, {', '.join(_versions())}"
    )


def _gpu() -> str:
    cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
    return cuda.get_device_name() if cuda and cuda.is_available() else "no GPU used"


def _versions() -> Iterator[str]:
    for name in ("torch", "transformers", "Django", "uvicorn"):
        with suppress(PackageNotFoundError):  # a GPU machine may have the trainer's packages alone
            yield f"{name} {version(name)}"
