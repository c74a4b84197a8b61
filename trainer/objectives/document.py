"""docs/catalogue.md, written from the declarations: `python -m trainer docs-objectives`. Imports no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from trainer.objectives.base import STAGES, ObjectivePart
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.preset import Preset
from trainer.objectives.preview import fields_of, missing, part_words, statistics
from trainer.objectives.registry import PARTS, PRESETS
from trainer.statistics import STATISTICS

PATH = Path("docs/catalogue.md")
CONFIDENCE = {
    "code": "read in the authors' or a mainstream implementation",
    "paper": "read in the paper",
    "secondary": "taken from another source that quotes the formulas",
    "reconstructed": "only an abstract or summary was at hand; the rest is filled in",
    "own": "Isentrope's own",
}
HEAD = """# Catalogue of objectives

Written by `python -m trainer docs-objectives` (`make docs`) from the declarations in `trainer/objectives`; edit those.
How the parts work together: [objectives.md](objectives.md).

$A$ is the advantage of a token, $r$ the ratio of its probability now to that when it was drawn, $H$ the entropy over
the vocabulary in nats; old values are those at the start of the step. Settings in bold differ from the part's default.
"""


def catalogue() -> str:
    """Return the whole document."""
    pages = [HEAD, _contents()]
    for family, presets in groupby(PRESETS.values(), key=lambda preset: preset.family):
        pages += [f"## {family}\n", *map(_preset, presets)]
    return "\n".join([*pages, _blocks(), _statistics(), _unsupplied()])


def _contents() -> str:
    rows = (
        (f"[`{preset.name}`](#{preset.name})", preset.title, preset.family, _year(preset), _status(preset))
        for preset in PRESETS.values()
    )
    return f"{len(PRESETS)} presets.\n\n" + _table(("preset", "method", "family", "year", ""), rows)


def _preset(preset: Preset) -> str:
    config = ObjectiveConfig(preset=preset.name)
    lines = [f"### {preset.name}\n", f"**{preset.title}.** {preset.summary}\n"]
    if preset.when:
        lines.append(f"*When:* {preset.when}\n")
    if preset.formula:
        lines.append(f"{display(preset.formula)}\n")
    given = {part["type"]: part for part in preset.parts}
    rows = ((part.stage, f"`{part.type}`", _settings(part, given[part.type])) for part in config.parts)
    lines.append(_table(("stage", "part", "settings"), rows))
    lines += _facts(preset, config)
    return "\n".join(lines)


def _facts(preset: Preset, config: ObjectiveConfig) -> Iterator[str]:
    read = ", ".join(f"`{info.name}` ({info.domain}, {info.policy})" for info in statistics(config))
    yield f"- Reads: {read}"
    yield f"- Confidence: {preset.confidence}, {CONFIDENCE[preset.confidence]}"
    if preset.reference:
        title, url = preset.reference.title, preset.reference.url
        yield f"- Source: {f'[{title}]({url})' if url else title}"
    if preset.experimental:
        yield f"- **Experimental.** Assumed: {preset.assumed}"
    if preset.variants:
        yield f"- Variants: {preset.variants}"
    if lacking := missing(config):
        yield "- Not launchable yet: " + "; ".join(f"`{info.name}` needs {info.missing}" for info in lacking)
    yield ""


def _settings(part: ObjectivePart, given: dict[str, Any]) -> str:
    """Return the settings that a preset names, and beside them the defaults it keeps."""
    shown = []
    for field in fields_of(type(part), part):
        if not field["advanced"] or field["name"] in given:
            value = f"{field['name']} = {plain(field['value'])}"
            shown.append(f"**{value}**" if field["value"] != field["default"] else value)
    return ", ".join(shown)


def _blocks() -> str:
    lines = ["## Building blocks\n", "Every part, by stage; parts of several presets can be put together freely.\n"]
    for stage in STAGES:
        kinds = [(name, kind) for name, kind in PARTS.items() if kind.stage == stage]
        if kinds:
            lines.append(f"### {stage.replace('_', ' ').capitalize()}\n")
            lines += [_block(name, kind) for name, kind in kinds]
    return "\n".join(lines)


def _block(name: str, kind: type[ObjectivePart]) -> str:
    title, text = part_words(kind)
    lines = [f"#### `{name}`: {title}\n", f"{text}\n"]
    if kind.formula:
        lines.append(f"{display(kind.formula)}\n")
    fields = (
        (f"`{field['name']}`", plain(field["default"]), field["allowed"], field["unit"], field["help"])
        for field in fields_of(kind)
    )
    if rows := list(fields):
        lines.append(_table(("setting", "default", "range", "unit", "what it does"), rows))
    using = [preset.name for preset in PRESETS.values() if any(part["type"] == name for part in preset.parts)]
    lines.append(f"Used by: {', '.join(f'[{user}](#{user})' for user in using) or 'no preset'}.\n")
    return "\n".join(lines)


def _statistics() -> str:
    rows = (
        (f"`{info.name}`", info.help, info.domain, info.policy, info.unit, info.supplier or "not yet")
        for info in STATISTICS.values()
    )
    head = ("statistic", "what it is", "domain", "policy", "unit", "supplied by")
    return "## Statistics\n\nWhat objectives may read.\n\n" + _table(head, rows)


def _unsupplied() -> str:
    """Return what the trainer cannot give yet, and who waits for it."""
    waiting = {name: missing(ObjectiveConfig(preset=name)) for name in PRESETS}
    rows = []
    for info in STATISTICS.values():
        if not info.available:
            users = [f"[{name}](#{name})" for name, lacking in waiting.items() if info in lacking]
            rows.append((f"`{info.name}`", info.missing, ", ".join(users) or "–"))
    text = "A run whose objective reads one of these is refused; `evaluate-objective` takes them from recorded numbers."
    return f"## Statistics the trainer cannot supply yet\n\n{text}\n\n" + _table(
        ("statistic", "what it takes", "presets"), rows
    )


def display(formula: str) -> str:
    """Return LaTeX as a displayed formula; it carries no blank lines, which would end it."""
    return "$$\n" + "\n".join(line.strip() for line in formula.strip().splitlines() if line.strip()) + "\n$$"


def plain(value: Any) -> str:
    """Return a setting as people write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "empty"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(plain, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


def _year(preset: Preset) -> str:
    return str(preset.reference.year) if preset.reference and preset.reference.year else ""


def _status(preset: Preset) -> str:
    marks = ["experimental"] if preset.experimental else []
    if missing(ObjectiveConfig(preset=preset.name)):
        marks.append("evaluation only")
    return ", ".join(marks)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def main(arguments: list[str]) -> int:
    """Write the document, or with --check say whether it is stale."""
    options = argparse.ArgumentParser("python -m trainer docs-objectives", description=__doc__)
    options.add_argument("--out", type=Path, default=PATH, help=f"file to write; default {PATH}")
    options.add_argument("--check", action="store_true", help="write nothing; exit 1 where the file is stale")
    given = options.parse_args(arguments)
    text = catalogue()
    if not given.check:
        given.out.write_text(text, "utf-8")
        return 0
    if given.out.exists() and given.out.read_text("utf-8") == text:
        return 0
    print(f"{given.out} is stale; run python -m trainer docs-objectives", file=sys.stderr)
    return 1
