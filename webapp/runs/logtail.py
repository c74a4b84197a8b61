"""The end of a log (trainer.log, server.log), clean enough to show: whole lines, no escape sequences, no secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 64 * 1024
CHUNK_BYTES = 256 * 1024
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Unseen signs that could make a line read differently from what it is.
BIDI = re.compile("[\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
SECRETS = (
    re.compile(r"\b(hf_|sk-|ghp_|github_pat_|xox[baprs]-|wandb_v1_)[A-Za-z0-9_\-]{12,}"),
    re.compile(r"(?i)\b(bearer )[A-Za-z0-9._\-+/=]{16,}"),
    re.compile(r"(?i)\b([a-z_]*(?:token|secret|password|api_?key)[\"']?\s*[=:]\s*[\"']?)[^\s\"',]{8,}"),
    re.compile(r"(\b[a-z][a-z0-9+]*://[^\s:/@]*:)[^\s:/@]+(?=@)"),
)


@dataclass(frozen=True)
class Tail:
    """Text of the bytes [start, next) of a log; `more` says that the file goes on."""

    text: str
    start: int
    next: int
    more: bool


def clean(text: str) -> str:
    """Return the text without escape sequences and control characters, its secrets blotted out."""
    # A progress bar rewrites its line: what it said last is what a terminal would show.
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in ESCAPES.sub("", text).split("\n"))
    text = BIDI.sub("\ufffd", CONTROLS.sub("\ufffd", "\n".join(lines)))
    for secret in SECRETS:
        text = secret.sub(r"\1[removed]", text)
    return text


def tail(path: Path, offset: int | None) -> Tail:
    """Read whole lines from `offset` on, or the last ones for None; a file that shrank is read from its start."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            start = max(0, end - TAIL_BYTES) if offset is None else offset
            if start > end:
                start = 0
            file.seek(start)
            data = file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return Tail("", 0, 0, False)
    if offset is None and start:
        cut = data.find(b"\n") + 1
        data, start = data[cut:], start + cut
    whole = data.rfind(b"\n") + 1
    # A line longer than a chunk is cut, else nothing would ever come.
    if whole or len(data) < CHUNK_BYTES:
        data = data[:whole]
    return Tail(
        clean(data.decode("utf-8", "replace")), start, start + len(data), start + len(data) < end and len(data) > 0
    )
