"""ScheduledTarget: an entropy to hold or reach, constant or on a course, as controllers of ours take it."""

from __future__ import annotations

from statistics import fmean
from typing import Any, Literal

from pydantic import model_validator

from trainer.objectives.base import Observation
from trainer.objectives.schedule import Points, cosine, drawn, linear, progress
from trainer.objectives.stages import Controller
from trainer.part import setting


class ScheduledTarget(Controller):
    """The settings of a target and where it stands at each step; steering it overrides the course from then on."""

    target: float = setting(
        0.6,
        help="Entropy to hold or reach: in nats, or a multiple of the initial entropy; a steered value is in nats.",
        ge=0,
        le=20,
        knob="entropy_target",
    )
    measure: Literal["initial", "nats"] = setting(
        "initial", help="What targets are given in: multiples of the initial entropy, or nats."
    )
    schedule: Literal["constant", "linear", "cosine", "drawn"] = setting("constant", help="Course of the target.")
    start: float = setting(
        0.0,
        help="Target at the start of the course; 0 takes the entropy measured at the start.",
        ge=0,
        le=20,
        show_if={"schedule": ["linear", "cosine"]},
    )
    until: float = setting(
        1.0,
        help="Share of the run after which the course has reached its target.",
        gt=0,
        le=1,
        show_if={"schedule": ["linear", "cosine"]},
    )
    points: Points = setting(
        help="Drawn course: (share of the run, target).", default_factory=list, show_if={"schedule": "drawn"}
    )
    baseline_steps: int = setting(
        5, help="First steps over which the initial entropy is averaged.", unit="steps", ge=1, le=1000, advanced=True
    )

    @model_validator(mode="after")
    def _drawn(self) -> ScheduledTarget:
        if self.schedule == "drawn" and not self.points:
            raise ValueError("points is empty; draw at least one point, or choose another schedule")
        return self

    def needs_baseline(self) -> bool:
        """Return whether the target depends on the initial entropy."""
        return self.measure == "initial" or (self.schedule in ("linear", "cosine") and not self.start)

    def _relative(self, x: float, initial: float) -> float:
        """Return the planned target at share x of the run, in the unit of `measure`."""
        start = self.start or initial
        if self.schedule == "constant":
            return self.target
        if self.schedule == "drawn":
            return drawn(self.points, x)
        return (linear if self.schedule == "linear" else cosine)(start, self.target, x / self.until)

    def planned(self, x: float, initial: float) -> float:
        """Return the planned target in nats at share x of the run, given the initial entropy in nats."""
        return self._relative(x, 1.0) * initial if self.measure == "initial" else self._relative(x, initial)

    def course(self, x: float) -> tuple[float, float] | None:
        if self.measure == "nats" and self.needs_baseline():
            return None
        value = self._relative(x, 1.0)
        return value, value

    def course_unit(self) -> str:
        return "x initial" if self.measure == "initial" else "nats"

    def band(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float] | None:
        if self.needs_baseline() and step <= self.baseline_steps:  # whether steps count from 0 or 1
            return None
        value = knobs.get("entropy_target", self.target)
        return value, value

    # -- as the run goes ----------------------------------------------------------------------------------------

    def initial_state(self) -> dict[str, Any]:
        return {
            "first": [],  # entropies of the first steps
            "initial": None,  # their mean, nats
            "set": self.target,  # the target this controller last wrote: any other value was steered
            "steered": False,
        }

    def follow(self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]) -> dict[str, Any]:
        """Return the state with the initial entropy, and whether somebody steered, brought up to date."""
        state = {**state, "steered": state["steered"] or knobs["entropy_target"] != state["set"]}
        if state["initial"] is None:
            state["first"] = [*state["first"], seen.entropy]
            if len(state["first"]) >= self.baseline_steps:
                state["initial"] = fmean(state["first"])
        return state

    def known(self, state: dict[str, Any]) -> bool:
        """Return whether there is a target in nats yet."""
        return state["steered"] or not self.needs_baseline() or state["initial"] is not None

    def ahead(self, state: dict[str, Any], seen: Observation, knobs: dict[str, float], steps: int) -> float:
        """Return the target in nats so many steps after the one seen."""
        if state["steered"]:
            return knobs["entropy_target"]
        return self.planned(progress(seen.step + steps, seen.total_steps), state["initial"] or 0.0)
