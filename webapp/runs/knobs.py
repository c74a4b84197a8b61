"""Knobs as the steering card shows them: value in force, bounds, and a request that has not taken effect yet."""

from __future__ import annotations

from dataclasses import dataclass

from webapp.runs.models import Run, State
from webapp.runs.panels import ENTROPY_KNOB


@dataclass(frozen=True)
class KnobView:
    """One row; `pending` is the requested value while the trainer has not taken it."""

    name: str
    value: float
    low: float | None
    high: float | None
    help: str
    unit: str
    pending: float | None
    control_seq: int

    @property
    def label(self) -> str:
        return self.name.replace("_", " ").capitalize()

    @property
    def now(self) -> str:
        return f"{self.value:g}"

    @property
    def wanted(self) -> str:
        return "" if self.pending is None else f"{self.pending:g}"

    @property
    def bounds(self) -> str:
        if self.low is None and self.high is None:
            return ""
        if self.high is None:
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if self.low is None else f"{self.low:g} to {self.high:g}"


def knobs(run: Run) -> list[KnobView]:
    """Return the knobs of a run, the entropy target first."""
    asked = _newest_requests(run)
    views = [_view(run, name, spec, asked.get(name, 0)) for name, spec in run.knobs.items()]
    return sorted(views, key=lambda knob: (knob.name != ENTROPY_KNOB, knob.name))


def refusal(run: Run) -> str:
    """Return why the run cannot be steered now; empty when it can."""
    if run.state == State.STOPPING:
        return "The run is stopping."
    return "" if run.alive else f"Only a running run can be steered; this one is {run.state}."


def _view(run: Run, name: str, spec: dict, asked: int) -> KnobView:
    wanted, value = run.control_knobs.get(name), spec.get("value", 0.0)
    applied = (
        run.events.filter(type="knob", data__name=name, data__source="user").order_by("-seq").first() if asked else None
    )
    waiting = (
        run.alive and wanted is not None and wanted != value and asked > (applied.data["control_seq"] if applied else 0)
    )
    return KnobView(
        name=name,
        value=value,
        low=spec.get("low"),
        high=spec.get("high"),
        help=spec.get("help", ""),
        unit=spec.get("unit", ""),
        pending=wanted if waiting else None,
        control_seq=asked,
    )


def _newest_requests(run: Run) -> dict[str, int]:
    """Return {knob: control_seq of the newest request for it}."""
    found: dict[str, int] = {}
    for data in run.requests.filter(kind="steer").order_by("at", "id").values_list("data", flat=True):
        found |= dict.fromkeys(data["knobs"], data["control_seq"])
    return found
