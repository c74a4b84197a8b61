"""What viewers are told about a run, over the websocket and by polling."""

from __future__ import annotations

from typing import Any

from webapp.runs.models import Event, Run
from webapp.runs.progress import eta_seconds

EVENTS_PER_MESSAGE = 500


def run_message(run: Run) -> dict[str, Any]:
    """Return the state of a run; times are Unix seconds, `eta_seconds` is [least, most] or None."""
    eta = eta_seconds(run)
    return {
        "id": run.pk,
        "name": run.name,
        "state": run.state,
        "alive": run.alive,
        "resumable": run.resumable,
        "unresponsive": run.unresponsive,
        "waiting_reason": run.waiting_reason,
        "failure": run.failure,
        "failure_field": run.failure_field,
        "attempt": run.attempt,
        "step": run.step,
        "total_steps": run.total_steps,
        "phase": run.phase,
        "phase_done": run.phase_done,
        "phase_total": run.phase_total,
        "eta_seconds": [round(seconds, 1) for seconds in eta] if eta else None,
        "started_at": run.started_at.timestamp() if run.started_at else None,
        "ended_at": run.ended_at.timestamp() if run.ended_at else None,
        "stop_requested": run.stop_requested_at is not None,
        "control_seq": run.control_seq,
        "control_knobs": run.control_knobs,
        "knobs": run.knobs,
        "summary": run.summary,
        "last_seq": run.last_seq,
        "disk_bytes": run.disk_bytes,
    }


def event_message(event: Event) -> dict[str, Any]:
    """Return an event as its line in events.jsonl says it."""
    return {
        **event.data,
        "seq": event.seq,
        "attempt": event.attempt,
        "step": event.step,
        "time": event.time.timestamp(),
        "type": event.type,
    }


def events_after(run_id: str, after: int, limit: int = EVENTS_PER_MESSAGE) -> list[dict[str, Any]]:
    """Return the next events of a run in order, at most `limit`."""
    return [
        event_message(event) for event in Event.objects.filter(run_id=run_id, seq__gt=after).order_by("seq")[:limit]
    ]
