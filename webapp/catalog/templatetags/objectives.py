"""How the objective pages write settings and formulas."""

from __future__ import annotations

from typing import Any

from django import template
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from trainer.objectives.document import plain as written

register = template.Library()


@register.filter
def plain(value: Any) -> str:
    """Return a setting as people write it."""
    return written(value)


@register.filter
def words(name: str) -> str:
    """Return a declared name as words."""
    return str(name).replace("_", " ")


@register.filter
def ticked(text: str) -> SafeString:
    """Return prose with `names` between backticks as code."""
    pieces = str(text).split("`")
    return format_html_join(
        "", "{}", ((format_html("<code>{}</code>", piece) if at % 2 else piece,) for at, piece in enumerate(pieces))
    )


@register.simple_tag
def formula(source: str) -> SafeString | str:
    """Return LaTeX for the browser to set; without scripts its source stays readable. Nothing for an empty one."""
    if not source:
        return ""
    return format_html('<div class="formula" data-formula><code>{}</code></div>', source)


@register.filter
def bare(value: Any) -> str:
    """Return a number as scripts and inputs read it."""
    return repr(value) if isinstance(value, float) else str(value)
