"""What happened to a run and who asked for it, as one list; its evaluations as a table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from webapp.runs.models import Event, Request, Run

SHOWN = 400
TOLD = ("started", "checkpoint", "checkpoint_removed", "evaluation", "knob", "alert", "warning", "finished", "failed")
MARKED = ("started", "checkpoint", "evaluation", "alert")
VERBS = {
    "launch": "launched the run",
    "stop": "asked it to stop",
    "kill": "ended its processes",
    "resume": "asked to resume it",
    "duplicate": "duplicated it",
    "archive": "archived it",
    "unarchive": "took it out of the archive",
}


@dataclass(frozen=True)
class Entry:
    """One line of the timeline; `who` is a person's name or empty for the trainer."""

    at: datetime
    step: int
    kind: str
    text: str
    who: str = ""
    attempt: int | None = None


def timeline(run: Run) -> list[Entry]:
    """Return the newest events and requests, newest first; what controllers move is on the charts, not here."""
    events = run.events.filter(type__in=TOLD).exclude(type="knob", data__source="controller").order_by("-seq")[:SHOWN]
    requests = run.requests.select_related("user").order_by("-at", "-id")[:SHOWN]
    entries = [*map(_event, events), *map(_request, requests)]
    return sorted(entries, key=lambda entry: entry.at, reverse=True)[:SHOWN]


def marked(run: Run) -> list[Event]:
    """Return the events that charts mark, in order, at most the newest 2,000."""
    loud = run.events.filter(type__in=MARKED) | run.events.filter(type="knob", data__source="user")
    return list(loud.order_by("-seq")[:2000])[::-1]


def _event(event: Event) -> Entry:
    return Entry(
        event.time, event.step, event.type, _sentence(event.type, event.data, event.step), attempt=event.attempt
    )


@dataclass(frozen=True)
class Computing:
    """One way of computing that an attempt chose, and why."""

    name: str
    choice: str
    why: str


# what `plan` of a `started` event calls it, and what a page does
CHOSEN = {
    "old_logprobs": "Log-probs at the start of a step",
    "head": "Gradients of the output layer",
    "kernel": "Log-prob and entropy kernel",
    "micro_batches": "Forward passes",
    "entropy": "Entropies",
}


def computing(run: Run) -> list[Computing]:
    """Return how the newest attempt computes; empty before it has begun and where it is from an older version."""
    plan = run.events.filter(type="started").order_by("-seq").values_list("data__plan", flat=True).first() or {}
    names = [*(name for name in CHOSEN if name in plan), *(name for name in plan if name not in CHOSEN)]
    titles = {name: CHOSEN.get(name, name.replace("_", " ").capitalize()) for name in names}
    return [Computing(titles[name], plan[name]["choice"], plan[name]["why"]) for name in names]


def _sentence(kind: str, data: dict[str, Any], step: int) -> str:
    match kind:
        case "started":
            behind = f", resumed from step {data['resume_step']}" if data.get("resume_step") else ""
            return f"Attempt started on {data.get('device', '?')} with {data.get('parameters', 0):,} parameters{behind}"
        case "checkpoint":
            return f"{'Final checkpoint' if data.get('final') else 'Checkpoint'} of step {step} written"
        case "checkpoint_removed":
            return f"Old checkpoint {data['path'].rpartition('/')[2]} removed"
        case "evaluation":
            figures = ", ".join(f"{name} {value:.3g}" for name, value in data["values"].items())
            return f"Evaluated on {data['prompts']} prompts: {figures}"
        case "knob":
            return f"{data['name']} took effect: {data['old']:g} → {data['new']:g}"
        case "alert" | "warning":
            return data["message"]
        case "finished":
            return f"Attempt {data['status']}{': ' + data['reason'] if data.get('reason') else ''}"
        case _:
            return data.get("reason", kind)


def _request(request: Request) -> Entry:
    who = request.user.username if request.user else "someone"
    if request.kind == "steer":
        text = "asked for " + ", ".join(f"{name} = {value:g}" for name, value in request.data["knobs"].items())
    else:
        text = VERBS.get(request.kind, request.kind)
    return Entry(request.at, request.step, request.kind, text, who)


def evaluations(run: Run) -> dict[str, Any]:
    """Return {names, rows: [(event, values in the order of names)]}, newest first."""
    events = list(run.events.filter(type="evaluation").order_by("-seq")[:SHOWN])
    names = list(dict.fromkeys(name for event in events for name in event.data["values"]))
    return {"names": names, "rows": [(event, [event.data["values"].get(name) for name in names]) for event in events]}
