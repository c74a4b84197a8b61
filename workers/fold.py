"""What an event does to the run's row and checkpoints: latest values, knobs, sparklines, progress."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from django.db.models import F

from trainer import events
from webapp.runs.models import Checkpoint, Run, State

SPARK_POINTS = 40
KNOB = "knob/"  # metrics of this section say which knobs were in force during the step
SPARKS = {"spark_reward": "reward/mean", "spark_entropy": "entropy/mean"}
# Columns that folding may change; the offset and counters of ingest itself are beside them.
FIELDS = ["state", "step", "total_steps", "heartbeat_at", "knobs", "summary", *SPARKS]


def fold(run: Run, found: Iterable[Any]) -> None:
    """Apply events to a locked row in order; the caller saves FIELDS."""
    for event in found:
        run.heartbeat_at = when(event)
        if handler := HANDLERS.get(event.type):
            handler(run, event)


def when(event: events.EventBase) -> datetime:
    """Return an event's time; raises ValueError or OverflowError for one no calendar has."""
    return datetime.fromtimestamp(event.time, UTC)


def stride(step: int) -> int:
    """Return the distance of sparkline points at a step, 1, 2, 4, …: 40 points always reach back to the start."""
    return 1 << (step // SPARK_POINTS).bit_length()


def _started(run: Run, event: events.Started) -> None:
    run.total_steps, run.step = event.total_steps, event.resume_step
    run.knobs = {spec.name: spec.model_dump(exclude={"name"}) for spec in event.knobs}
    if event.attempt == run.attempt and run.state == State.STARTING:
        run.state = State.RUNNING
    if event.attempt > 1:
        _rewind_sparks(run, event.resume_step)


def _metrics(run: Run, event: events.Metrics) -> None:
    run.step = event.step
    run.summary = {**run.summary, **event.values}
    # Controllers move knobs without an event of their own.
    force = {name.removeprefix(KNOB): value for name, value in event.values.items() if name.startswith(KNOB)}
    run.knobs = {name: {**spec, "value": force.get(name, spec["value"])} for name, spec in run.knobs.items()}
    for field, name in SPARKS.items():
        if name in event.values and event.step % stride(event.step) == 0:
            points = [*getattr(run, field), round(event.values[name], 6)]
            setattr(run, field, points[::2] if len(points) > SPARK_POINTS else points)


def _evaluation(run: Run, event: events.Evaluation) -> None:
    measured = {f"evaluation/{name}": value for name, value in event.values.items()}
    run.summary = {**run.summary, **measured}
    # An evaluation of the checkpoint's own step may come after it.
    for checkpoint in run.checkpoints.filter(step=event.step, attempt=event.attempt):
        checkpoint.metrics = {**checkpoint.metrics, **measured}
        checkpoint.save(update_fields=["metrics"])


def _checkpoint(run: Run, event: events.CheckpointWritten) -> None:
    Checkpoint.objects.update_or_create(
        run=run,
        step=event.step,
        defaults={
            "attempt": event.attempt,
            "path": event.path,
            "bytes": event.bytes,
            "metrics": run.summary,
            "created_at": when(event),
        },
    )


def _checkpoint_removed(run: Run, event: events.CheckpointRemoved) -> None:
    run.checkpoints.filter(path=event.path).delete()


def _knob(run: Run, event: events.KnobChanged) -> None:
    run.knobs = {**run.knobs, event.name: {**run.knobs.get(event.name, {}), "value": event.new}}


def _rewind_sparks(run: Run, resume_step: int) -> None:
    """Draw the sparklines again from the stored points up to the step the new attempt starts from."""
    width = stride(resume_step)
    stored = run.events.filter(type="metrics", step__lte=resume_step).alias(rest=F("step") % width).filter(rest=0)
    by_step = {event.step: event.data.get("values", {}) for event in stored.order_by("seq")}
    for field, name in SPARKS.items():
        setattr(run, field, [round(by_step[step][name], 6) for step in sorted(by_step) if name in by_step[step]])


HANDLERS: dict[str, Any] = {
    "started": _started,
    "metrics": _metrics,
    "evaluation": _evaluation,
    "checkpoint": _checkpoint,
    "checkpoint_removed": _checkpoint_removed,
    "knob": _knob,
}
