"""Memory as pages draw it: a bar of parts, what there is beside it, and one sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from trainer.estimate import Estimate
from trainer.memory import LABELS, PHASES, Advice, MemoryPlan, Phase
from webapp.runs.models import Run
from webapp.runs.templatetags.lists import size

WIDTH = 1000  # of the bar, in units of its own
SIZES = TypeAdapter(dict[str, dict[str, NonNegativeInt]])  # bytes by phase and part


@dataclass(frozen=True)
class Segment:
    """One part of the bar; `x` and `width` in its units."""

    name: str
    label: str
    bytes: int
    x: float
    width: float


@dataclass(frozen=True)
class Change:
    """A setting that lowers the peak; `enough` where it does so alone."""

    advice: Advice
    enough: bool


@dataclass(frozen=True)
class MemoryView:
    """What `runs/_memory.html` shows. Bytes are of one process, `times` of which share the machine."""

    predicted: int
    when: str
    segments: list[Segment]
    phases: list[tuple[str, int]]
    times: int = 1
    limit: int | None = None  # what there is, or what was measured
    limit_x: float | None = None
    limit_label: str = ""
    sentence: str = ""
    lacking: bool = False
    changes: list[Change] = field(default_factory=list)


def before_launch(cost: Estimate | None) -> MemoryView | None:
    """Return what the form shows of a run's memory; None where nothing is known."""
    if cost is None or cost.memory is None:
        return None
    plan, room = cost.memory, cost.memory_room
    where = "on the smallest GPU" if plan.device == "cuda" else "free on this machine"
    whole = plan.machine_bytes
    text = ""
    if room:
        over = size(whole - room)
        text = (
            f"This is {over} more than the {size(room)} {where}. What lowers it most:"
            if cost.memory_lacking
            else f"Fits: {size(room)} {where}."
        )
    changes = [Change(one, bool(room and one.machine_bytes <= room)) for one in cost.memory_advice]
    return _view(
        plan,
        limit=room,
        limit_label=where,
        sentence=text,
        lacking=cost.memory_lacking,
        changes=changes if cost.memory_lacking else [],
    )


def after_launch(run: Run) -> MemoryView | None:
    """Return the prediction that a run's last attempt began with beside what it has measured; None before that."""
    started = run.events.filter(type="started").order_by("-seq").first()
    foretold = started.data.get("memory") if started else None
    plan = _plan(foretold, str(started.data.get("device", ""))) if started and foretold else None
    if plan is None:
        return None
    measured = _whole(run.summary.get("memory/peak_bytes"))
    if not measured:
        return _view(plan)
    share = round(100 * plan.peak_bytes / measured)
    return _view(
        plan,
        limit=measured,
        limit_label="measured so far" if run.alive else "measured",
        sentence=f"Measured: {size(measured)}; the prediction is {share} % of it.",
    )


def _plan(foretold: Any, device: str) -> MemoryPlan | None:
    """Return the plan of a `started` event, None where it is none."""
    try:
        sizes = SIZES.validate_python(foretold)
    except ValidationError:
        return None
    phases = [
        Phase(name=name, parts={part: count for part, count in sizes[name].items() if part in LABELS})
        for name in PHASES
        if sizes.get(name)
    ]
    kind: Literal["cpu", "cuda"] = "cuda" if device.startswith("cuda") else "cpu"
    return MemoryPlan(device=kind, processes=1, phases=phases) if phases else None


def _view(plan: MemoryPlan, *, limit: int | None = None, **said: Any) -> MemoryView:
    times = plan.processes if plan.device == "cpu" else 1
    whole = max(plan.machine_bytes, limit or 0, 1)
    segments, x = [], 0.0
    order = list(LABELS)  # a database's JSON has another
    for name, count in sorted(plan.peak.parts.items(), key=lambda part: order.index(part[0])):
        width = WIDTH * count * times / whole
        segments.append(Segment(name, LABELS[name], count * times, round(x, 2), round(width, 2)))
        x += width
    return MemoryView(
        predicted=plan.machine_bytes,
        when=PHASES[plan.peak.name],
        segments=segments,
        phases=[(PHASES[phase.name], phase.bytes * times) for phase in plan.phases],
        times=times,
        limit=limit,
        limit_x=round(WIDTH * limit / whole, 2) if limit else None,
        **said,
    )


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and value > 0 else 0
