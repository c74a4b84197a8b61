"""What the processes of an attempt say at its end: exit.json by the main one, exit-N.json by another one that failed.

A process that fails leaves the others in the middle of a collective, whose own error says nothing of the cause. So the
main process looks for what was said before it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from trainer.events import Exit, RunFolder


def write_exit(folder: RunFolder, ended: Exit, *, rank: int = 0) -> None:
    """Write a process's last words in one piece; on a full disk there are none, which reads as "interrupted"."""
    path = folder.exit if not rank else folder.path / f"exit-{rank}.json"
    temporary = path.with_name(f".{path.name}.tmp")
    with contextlib.suppress(OSError):
        temporary.write_text(ended.model_dump_json(), "utf-8")
        os.replace(temporary, path)


def first_to_fail(folder: RunFolder) -> Exit | None:
    """Return the words of the first process besides the main one that failed; None where there is none."""
    found = sorted(_others(folder), key=lambda path: path.stat().st_mtime_ns)
    return Exit.model_validate_json(found[0].read_text("utf-8")) if found else None


def forget(folder: RunFolder) -> None:
    """Remove what processes of attempts before have said."""
    for path in (folder.exit, *_others(folder)):
        path.unlink(missing_ok=True)


def _others(folder: RunFolder) -> list[Path]:
    return list(folder.path.glob("exit-*.json"))
