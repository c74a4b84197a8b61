"""How lists and tables write numbers, times and small curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()
DASH = "–"
SPARK_POINTS = 60


@register.filter
def figure(value: Any) -> str:
    """Return a number in at most four significant digits, a dash where there is none."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 1e-3 else f"{value:.3f}"


@register.filter
def compact(value: Any) -> str:
    """Return a count as 12.3k, 4.5M or 6.7B."""
    if value is None:
        return DASH
    for size, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{sign}"
    return f"{value:.3g}"


@register.filter
def size(value: Any) -> str:
    """Return bytes in the unit that fits."""
    if value is None:
        return DASH
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


@register.filter
def span(value: timedelta | float | None) -> str:
    """Return a length of time in its two largest units."""
    if value is None:
        return DASH
    seconds = int(value.total_seconds() if isinstance(value, timedelta) else value)
    if seconds < 0:
        return DASH
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"


@register.simple_tag
def ago(moment: datetime | None) -> SafeString | str:
    """Return how long ago, the absolute time on hover."""
    if moment is None:
        return DASH
    seconds = (timezone.now() - moment).total_seconds()
    for unit, length in (("y", 31_536_000), ("mo", 2_592_000), ("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            text = f"{int(seconds // length)} {unit} ago"
            break
    else:
        text = "just now"
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        moment.isoformat(timespec="seconds"),
        f"{moment:%Y-%m-%d %H:%M:%S} UTC",
        text,
    )


@register.simple_tag
def sparkline(values: Sequence[Any], kind: str, label: str) -> SafeString | str:
    """Return a curve of the last values as SVG, nothing for fewer than two; `kind` is its class."""
    numbers = [float(value) for value in values or () if isinstance(value, int | float) and math.isfinite(value)][
        -SPARK_POINTS:
    ]
    if len(numbers) < 2:
        return ""
    low, high = min(numbers), max(numbers)
    scale = (high - low) or 1.0
    points = " ".join(
        f"{index * 64 / (len(numbers) - 1):.1f},{15 - 13 * (number - low) / scale:.1f}"
        for index, number in enumerate(numbers)
    )
    text = f"{label} from {numbers[0]:.3g} to {numbers[-1]:.3g}"
    attributes = format_html('class="spark spark-{}" viewBox="0 0 64 16" role="img" aria-label="{}"', kind, text)
    return format_html('<svg {}><polyline points="{}"></polyline></svg>', attributes, points)


@register.filter
def histogram(counts: Sequence[int]) -> list[dict[str, float]]:
    """Return the bars of a histogram in a box of 100 by 32."""
    top = max(counts, default=0) or 1
    width = 100 / max(1, len(counts))
    return [
        {
            "x": round(index * width, 2),
            "width": round(width * 0.86, 2),
            "height": round(height, 2),
            "y": round(32 - height, 2),
            "count": count,
        }
        for index, count in enumerate(counts)
        for height in [max(0.6, 32 * count / top) if count else 0]
    ]


# Characters that hide or turn text around; shown as what they are.
UNSEEN = {
    code: f"⟨U+{code:04X}⟩" for code in (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
}
CONTROL = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {0x7F: "␡"}


@register.filter
def visible(text: str) -> str:
    """Return hostile text with control and direction characters made visible; the template escapes the rest."""
    return str(text).translate(UNSEEN | CONTROL)
