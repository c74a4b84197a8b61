"""One attempt of one run on this worker, from spawn to the record of its end."""

from __future__ import annotations

import logging
import signal
import subprocess
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.db import transaction
from pydantic import ValidationError

from trainer.events import LIVE_PROCESSES, Control, Exit
from webapp import queue
from webapp.runs import live
from webapp.runs.files import folder_bytes, write_atomically
from webapp.runs.models import Gpu, Run, State
from webapp.settings import env_int
from workers import claim, process
from workers.claim import LeaseClock, boot_seconds
from workers.ingest import Ingest
from workers.process import Process, processes
from workers.stream import Broker, Forwarder, Progress

log = logging.getLogger(__name__)

STOP_GRACE = env_int("ISENTROPE_STOP_GRACE", 60)  # seconds to finish the step and write a checkpoint
TERM_GRACE = env_int("ISENTROPE_TERM_GRACE", 20)  # seconds from SIGTERM to SIGKILL
PROGRESS_EVERY = 0.5  # seconds between writes of phase and heartbeat
DISK_EVERY = 60.0  # seconds between measurements of the run folder


class Attempt:
    """Everything this worker knows of an attempt; `run` is the row as last read."""

    def __init__(self, run: Run, clock: LeaseClock, broker: Broker) -> None:
        self.run, self.clock = run, clock
        self.process = Process.recorded(run)
        self.child: subprocess.Popen[bytes] | None = None
        self.ingest = Ingest(run)
        others = [run.folder.live_of(rank) for rank in range(1, min(processes(run), LIVE_PROCESSES))]
        self.forwarder = Forwarder(run.pk, run.folder.live, broker, others)
        self.control: Control | None = None
        self.asked_at: float | None = None  # when the stop was seen, boot seconds
        self.term_at: float | None = None
        self.progress_at = self.disk_at = 0.0
        self.ended = False

    def tend(self, run: Run) -> None:
        """Do what the fresh row asks for: start, steer, stop, record the end. Raises LeaseLost and Paused."""
        self.run = run
        if self.process is None:
            self._begin()
            return
        if run.pid is None:
            self._record_process()
        gone = not self._alive()
        self.pump()
        if gone:
            self._end()
            return
        self._write_control()
        self._press_for_the_end()
        self._measure_disk()

    def pump(self) -> None:
        """Move new events and frames; raises LeaseLost and Paused."""
        self.clock.check()
        self.ingest.step()
        progress = self.forwarder.forward()
        if progress:
            self._write_progress(progress)

    def terminate(self) -> None:
        """Ask the trainer to write a checkpoint and end, because this worker goes."""
        if self.process and self.term_at is None:
            self.term_at = boot_seconds()
            self.process.signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """End every process of the attempt at once."""
        if self.process:
            self.process.signal_group(signal.SIGKILL)
        process.kill_members(self.run.pk, self.run.attempt)
        self._alive()

    # Beginning -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.clock.check()
        if self.run.stop_requested_at:
            self._record_end(State.STOPPED, failure="")
            return
        # A worker may have died between the spawn and its record.
        self.process = process.find(self.run) or self._spawn()
        if self.process:
            self._record_process()

    def _spawn(self) -> Process | None:
        folder = self.run.folder
        try:
            folder.exit.unlink(missing_ok=True)
            self._write_control()
            self.child = process.spawn(self.run, self._gpus())
        except OSError as error:
            self._record_end(State.FAILED, failure=f"The trainer could not be started: {error}.")
            return None
        log.info("Run %s: attempt %d is process %d", self.run.pk, self.run.attempt, self.child.pid)
        return Process.of(self.child.pid)

    def _record_process(self) -> None:
        known = self.process
        assert known is not None
        claim.write(self.run.pk, self.run.lease_token, pid=known.pid, pid_started=known.started, boot_id=known.boot)

    def _gpus(self) -> list[int]:
        return list(Gpu.objects.filter(run_id=self.run.pk).order_by("index").values_list("index", flat=True))

    # While it runs -------------------------------------------------------------------------------------------------

    def _alive(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None  # reaps the child, too
        return self.process is not None and self.process.alive

    def _write_control(self) -> None:
        wanted = Control(
            seq=self.run.control_seq,
            knobs=self.run.control_knobs,
            stop=self.run.stop_requested_at is not None,
            watch=list(self.run.watched),
        )
        if wanted == self.control:
            return
        self.clock.check()
        write_atomically(self.run.folder.control, wanted.model_dump_json())
        self.control = wanted

    def _press_for_the_end(self) -> None:
        """Stop in three tones: control file, SIGTERM after the grace, SIGKILL to everything after another."""
        if self.run.stop_requested_at is None and self.term_at is None:
            return
        self.clock.check()
        now = boot_seconds()
        self.asked_at = self.asked_at or now
        impatient = self.run.kill_requested_at is not None
        if self.term_at is None and (impatient or now - self.asked_at > STOP_GRACE):
            log.warning("Run %s: SIGTERM", self.run.pk)
            self.terminate()
        elif self.term_at is not None and now - self.term_at > TERM_GRACE:
            log.warning("Run %s: SIGKILL", self.run.pk)
            self.kill()

    def _write_progress(self, progress: Progress) -> None:
        now = boot_seconds()
        if progress.attempt != self.run.attempt or now - self.progress_at < PROGRESS_EVERY:
            return
        self.progress_at = now
        fields = {"phase": progress.phase, "phase_done": progress.done, "phase_total": progress.total}
        claim.write(self.run.pk, self.run.lease_token, heartbeat_at=datetime.now(UTC), **fields)
        live.notify(self.run.pk)

    def _measure_disk(self) -> None:
        now = boot_seconds()
        if now - self.disk_at > DISK_EVERY:
            self.disk_at = now
            claim.write(self.run.pk, self.run.lease_token, disk_bytes=folder_bytes(self.run.folder.path))

    # The end -------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Record how the attempt ended, after its last event; what is left of its processes goes first."""
        self.clock.check()
        left = process.kill_members(self.run.pk, self.run.attempt)
        if left:
            log.warning("Run %s: ended %d processes it left behind", self.run.pk, left)
        self.ingest.drain()
        state, fields = self._verdict()
        self._record_end(state, **fields)

    def _verdict(self) -> tuple[str, dict[str, Any]]:
        """Return the final state and the columns that explain it."""
        said, code = read_exit(self.run), self.child.returncode if self.child else None
        tail = process.log_tail(self.run.folder)
        if said is None:
            # Nothing of the attempt was ever heard: it did not break off, it never got going.
            if code and code > 0 and self.run.state == State.STARTING and not self._started():
                reason = f"The trainer ended with code {code} before its first step; the log says why."
                return State.FAILED, {"failure": reason, "failure_log": tail}
            return State.INTERRUPTED, {"failure": self._vanished(code), "failure_log": tail}
        if said.status == "failed":
            return State.FAILED, {
                "failure": clean(said.reason),
                "failure_field": clean(said.field)[:200],
                "failure_log": tail,
            }
        if said.status == "interrupted" and self.run.stop_requested_at:
            return State.STOPPED, {"failure": ""}
        return said.status, {"failure": clean(said.reason) if said.status == "interrupted" else ""}

    def _started(self) -> bool:
        return self.run.events.filter(attempt=self.run.attempt, type="started").exists()

    def _vanished(self, code: int | None) -> str:
        if self.run.stop_requested_at and self.term_at is not None:
            return "The trainer did not stop when asked and was killed; steps since its last checkpoint are lost."
        how = f" (signal {-code})" if code and code < 0 else f" (code {code})" if code else ""
        return f"The trainer's process is gone{how} without a word; resume from the last checkpoint."

    def _record_end(self, state: str, **fields: Any) -> None:
        disk = folder_bytes(self.run.folder.path)
        with transaction.atomic():
            claim.end(self.run.pk, self.run.lease_token, state, disk_bytes=disk, **fields)
            transaction.on_commit(partial(live.notify, self.run.pk))
            queue.ring(queue.SCHEDULE)
        self.ended = True
        log.info("Run %s: attempt %d %s", self.run.pk, self.run.attempt, state)


def read_exit(run: Run) -> Exit | None:
    """Return what the current attempt said at its end; None if it said nothing, or nothing sensible."""
    try:
        said = Exit.model_validate_json(run.folder.exit.read_bytes())
    except (OSError, ValidationError):
        return None
    return said if said.attempt == run.attempt else None


def clean(text: str) -> str:
    """Return text a column can hold."""
    return text.replace("\x00", "�")[:4000]
