"""From events.jsonl to rows: whole lines only, each once, in the same transaction as what they change on the run."""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from django.db import DataError, transaction
from pydantic import ValidationError

from trainer.events import EVENT, RunFolder
from webapp.runs import live
from webapp.runs.models import Event, Run
from workers.claim import LeaseLost, fenced
from workers.fold import FIELDS, fold, when

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes looked at in one go; no honest line is longer
MALFORMED = "ingest/malformed_lines"  # key of the summary that counts what was skipped
HEAD = {"seq", "attempt", "step", "time", "type"}
INT = 2**31  # columns hold less
BIG = 2**63


@dataclass(frozen=True)
class Line:
    """A line of the file: where the next one begins, and its event, or None if it says nothing sensible."""

    end: int
    event: Any


class Ingest:
    """Follows one run's event file for one lease."""

    def __init__(self, run: Run) -> None:
        self.run_id, self.token, self.folder = run.pk, run.lease_token, run.folder
        self.offset = run.events_offset

    def step(self) -> bool:
        """Store the next whole lines; False if there are none. Raises LeaseLost."""
        lines = read_lines(self.folder, self.offset)
        if not lines:
            return False
        self._store(lines)
        return True

    def drain(self) -> None:
        """Store everything that is there."""
        while self.step():
            pass

    def _store(self, lines: list[Line]) -> None:
        """Store lines in one transaction; a line the database refuses is found by halving, and skipped."""
        try:
            self._write(lines)
        except DataError as error:
            if len(lines) > 1:
                middle = len(lines) // 2
                self._store(lines[:middle])
                self._store(lines[middle:])
                return
            log.warning("Run %s: skipped an event the database refuses: %s", self.run_id, error)
            self._write([Line(lines[0].end, None)])
        self.offset = lines[-1].end
        live.notify(self.run_id)

    @transaction.atomic
    def _write(self, lines: list[Line]) -> None:
        run = fenced(self.run_id, self.token).select_for_update(no_key=True).first()
        if run is None:
            raise LeaseLost(self.run_id)
        # Seen before, or out of order: the first one with its number stays.
        fresh, last = [], run.last_seq
        for line in lines:
            if line.event is not None and line.event.seq > last:
                fresh.append(line.event)
                last = line.event.seq
        Event.objects.bulk_create([row(run.pk, event) for event in fresh], ignore_conflicts=True)
        fold(run, fresh)
        malformed = sum(line.event is None for line in lines)
        if malformed:
            run.summary = {**run.summary, MALFORMED: run.summary.get(MALFORMED, 0) + malformed}
        run.last_seq, run.events_offset = last, lines[-1].end
        run.save(update_fields=[*FIELDS, "last_seq", "events_offset"])


def read_lines(folder: RunFolder, offset: int) -> list[Line]:
    """Return the whole lines after `offset`."""
    try:
        size = os.stat(folder.events).st_size
    except FileNotFoundError:
        return []
    if size < offset:
        log.warning("%s became shorter; it is read again from its start", folder.events)
        offset = 0
    if size == offset:
        return []
    with open(folder.events, "rb") as file:
        file.seek(offset)
        data = file.read(CHUNK)
    whole = data.rfind(b"\n") + 1
    if not whole:
        # A torn line is completed soon; one without end is skipped piece by piece.
        return [Line(offset + len(data), None)] if len(data) == CHUNK else []
    lines = []
    for line in data[: whole - 1].split(b"\n"):
        offset += len(line) + 1
        lines.append(Line(offset, parse(line, folder)))
    return lines


def parse(line: bytes, folder: RunFolder) -> Any:
    """Return the event of a line, fit for the database, or None with a warning."""
    try:
        event = EVENT.validate_json(line)
        return _checked(event, zero=rb"\u0000" in line)
    except (ValidationError, ValueError, OverflowError, OSError) as error:
        log.warning("%s: skipped a malformed line: %.300s", folder.events, str(error).replace("\n", " "))
        return None


def row(run_id: str, event: Any) -> Event:
    """Return the event's row."""
    data = event.model_dump(mode="json", exclude=HEAD)
    return Event(
        run_id=run_id,
        seq=event.seq,
        attempt=event.attempt,
        step=event.step,
        type=event.type,
        time=when(event),
        data=data,
    )


def _checked(event: Any, *, zero: bool) -> Any:
    """Return the event with what PostgreSQL cannot hold taken out; raise ValueError where that is impossible."""
    when(event)
    if event.seq >= BIG or max(event.step, event.attempt) >= INT or getattr(event, "bytes", 0) >= BIG:
        raise ValueError("a number is out of range")
    if values := getattr(event, "values", None):
        event = event.model_copy(
            update={"values": {name: value for name, value in values.items() if math.isfinite(value)}}
        )
    path = PurePosixPath(getattr(event, "path", ""))
    if path.is_absolute() or ".." in path.parts or len(str(path)) > 200:
        raise ValueError("a path leads out of the run folder")
    if zero:
        event = EVENT.validate_python(_without_zero(event.model_dump()))
    json.dumps(event.model_dump(mode="python"), allow_nan=False)  # ValueError for NaN and infinities elsewhere
    return event


def _without_zero(value: Any) -> Any:
    """Replace U+0000 in all strings: JSON columns cannot hold it."""
    if isinstance(value, str):
        return value.replace("\x00", "�")
    if isinstance(value, dict):
        return {_without_zero(key): _without_zero(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_zero(item) for item in value]
    return value
