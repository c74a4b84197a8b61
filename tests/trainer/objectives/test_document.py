"""docs/catalogue.md says what the declarations say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.objectives import PARTS, PRESETS, ObjectiveConfig, document
from trainer.objectives.preview import changes, fields_of, missing, part_words

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def text() -> str:
    return document.catalogue()


def test_the_committed_catalogue_is_not_stale(text) -> None:
    assert (ROOT / document.PATH).read_text("utf-8") == text, "run make docs"


def test_every_method_and_part_has_a_heading_of_its_own(text) -> None:
    headings = re.findall(r"^#+ .*$", text, re.MULTILINE)
    assert len(set(headings)) == len(headings)
    for name in PRESETS:
        assert f"### {name}" in headings
    for name in PARTS:
        assert f"#### `{name}`: {part_words(PARTS[name])[0]}" in headings


def test_links_within_the_page_lead_somewhere(text) -> None:
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= set(PRESETS)


def test_what_is_assumed_or_lacking_is_said(text) -> None:
    sections = dict(re.findall(r"^### ([\w-]+)\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL))
    for name, preset in PRESETS.items():
        assert ("**Experimental.**" in sections[name]) == preset.experimental
        for info in missing(ObjectiveConfig(preset=name)):
            assert info.missing in sections[name]


def test_tables_keep_their_columns(text) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_formulas_hold_no_blank_lines_and_no_dollar(text) -> None:
    assert document.display("a\n\n  b\n") == "$$\na\nb\n$$"
    for formula in [preset.formula for preset in PRESETS.values()] + [kind.formula for kind in PARTS.values()]:
        assert "$" not in formula


def test_changes_are_what_the_method_adds_to_grpo() -> None:
    assert changes(ObjectiveConfig()) == []
    assert [part.type for part in changes(ObjectiveConfig(preset="dapo"))] == [
        "soft_overlong",
        "zero_variance_filter",
        "ppo_clip",
    ]


def test_ranges_are_written_in_words() -> None:
    ranges = {field["name"]: field["allowed"] for field in fields_of(PARTS["top_entropy"])}
    assert ranges["share"] == "> 0, ≤ 1"
    assert ranges["removal"] == "detach, drop"
    assert ranges["strict"] == "on, off"
    assert {field["name"]: field["allowed"] for field in fields_of(PARTS["ppo_clip"])}["clip_high"] == "0 to 100"


def test_the_command_notices_a_stale_file(tmp_path) -> None:
    command = [sys.executable, "-m", "trainer", "docs-objectives", "--out", str(tmp_path / "catalogue.md")]
    assert subprocess.run([*command, "--check"], cwd=ROOT, capture_output=True).returncode == 1
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    assert subprocess.run([*command, "--check"], cwd=ROOT).returncode == 0
