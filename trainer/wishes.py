"""Wishes: which groups of the step viewers want to see growing, read from control.json while the trainer samples."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import ValidationError

from trainer.events import Control

LOOK_SECONDS = 0.25  # between looks at the file's date, at least


class Wishes:
    """Follows `watch` of a control file, which is replaced as a whole whenever it changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._groups: frozenset[int] = frozenset()
        self._looked, self._seen = -LOOK_SECONDS, (0, 0)

    def groups(self) -> frozenset[int]:
        """Return the groups last asked for; costs one look at the file's date, and that only now and then."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look()
        return self._groups

    def _look(self) -> None:
        try:
            known = self.path.stat()
            seen = known.st_mtime_ns, known.st_ino
            if seen != self._seen:
                self._groups = frozenset(Control.model_validate_json(self.path.read_bytes()).watch)
                self._seen = seen
        except FileNotFoundError:
            self._groups = frozenset()
        except (OSError, ValidationError):
            return  # whoever reads the file for its knobs complains
