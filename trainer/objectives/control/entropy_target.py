"""Our own controller: hold entropy at a target, constant or scheduled, by moving the entropy coefficient."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from trainer.objectives.base import Controller, Observation, Preset, Reference, Statistic
from trainer.objectives.schedule import Points, cosine, drawn, linear, progress
from trainer.objectives.stock import BONUS, CLIP, GROUP, TOKENS
from trainer.part import setting

SMALLEST = 0.05  # nats; a target below it counts as this in the relative error
GUARD_MARGIN = 1.2  # entropy this far above its target, rising, with falling reward, is an explosion


class EntropyTarget(Controller):
    """Target entropy.

    A PI law with conditional anti-windup: coefficient = kp * error + integral of ki * error, between floor and cap, and
    no faster than the slew limit. The error is relative to the target, so one setting suits 0.2 nats as well as 2. The
    integral rests while a limit holds the coefficient back, so it cannot wind up; a negative coefficient pulls entropy
    down to the target. Steering the target overrides the schedule from then on. If entropy runs away upwards while
    reward falls, the coefficient is cut to 0 at once.
    """

    title: ClassVar[str] = "Target entropy (PI)"
    moves: ClassVar[frozenset[str]] = frozenset({"entropy_coefficient", "entropy_target"})
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy"})
    requires: ClassVar[frozenset[str]] = frozenset({"entropy_bonus"})
    type: Literal["entropy_target"] = "entropy_target"
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
    kp: float = setting(1.0, help="Coefficient per relative error.", ge=0, le=10, advanced=True)
    ki: float = setting(0.05, help="Coefficient gained in a step per relative error.", ge=0, le=10, advanced=True)
    cap: float = setting(0.3, help="Largest coefficient.", ge=0, le=1)
    floor: float = setting(-0.1, help="Smallest coefficient; 0 never pulls entropy down.", ge=-1, le=0, advanced=True)
    slew: float = setting(0.05, help="Largest change of the coefficient in a step.", gt=0, le=2, advanced=True)
    baseline_steps: int = setting(
        5, help="First steps over which the initial entropy is averaged.", unit="steps", ge=1, le=1000, advanced=True
    )
    guard_steps: int = setting(
        10, help="Window of the explosion guard; 0 turns it off.", unit="steps", ge=0, le=1000, advanced=True
    )

    @model_validator(mode="after")
    def _possible(self) -> EntropyTarget:
        if self.schedule == "drawn" and not self.points:
            raise ValueError("points is empty; draw at least one point, or choose another schedule")
        return self

    # -- the target ---------------------------------------------------------------------------------------------

    def _needs_baseline(self) -> bool:
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
        if self.measure == "nats" and self._needs_baseline():
            return None
        value = self._relative(x, 1.0)
        return value, value

    def course_unit(self) -> str:
        return "x initial" if self.measure == "initial" else "nats"

    def band(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float] | None:
        if self._needs_baseline() and step <= self.baseline_steps:  # whether steps count from 0 or 1
            return None
        value = knobs.get("entropy_target", self.target)
        return value, value

    # -- the law ------------------------------------------------------------------------------------------------

    def initial_state(self) -> dict[str, Any]:
        return {
            "first": [],  # entropies of the first steps
            "initial": None,  # their mean, nats
            "set": self.target,  # the target this controller last wrote: any other value was steered
            "steered": False,
            "integral": 0.0,
            "entropies": [],
            "rewards": [],
            "alert": "",
        }

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        if not math.isfinite(seen.entropy):
            return state, {}
        state = self._remember({**state, "alert": ""}, seen)
        if knobs["entropy_target"] != state["set"]:
            state["steered"] = True
        if not state["steered"] and self._needs_baseline() and state["initial"] is None:
            return state, {}
        if state["steered"]:
            target = knobs["entropy_target"]
        else:
            target = self.planned(progress(seen.step + 1, seen.total_steps), state["initial"] or 0.0)
        state["set"] = target
        if self._exploding(state, knobs["entropy_coefficient"], target):
            state |= {"integral": min(state["integral"], 0.0), "entropies": [], "rewards": []}
            state["alert"] = "Entropy ran away upwards while reward fell: the entropy coefficient was cut to 0."
            return state, {"entropy_coefficient": 0.0, "entropy_target": target}
        state["integral"], coefficient = self.law(
            state["integral"], knobs["entropy_coefficient"], (target - seen.entropy) / max(target, SMALLEST)
        )
        return state, {"entropy_coefficient": coefficient, "entropy_target": target}

    def law(self, integral: float, coefficient: float, error: float) -> tuple[float, float]:
        """Return the next integral and coefficient from the present ones and the relative error."""
        grown = integral + self.ki * error
        wanted = self.kp * error + grown
        allowed = min(max(wanted, self.floor), self.cap)
        allowed = min(max(allowed, coefficient - self.slew), coefficient + self.slew)
        held_back = (wanted - allowed) * error > 0  # a limit is active, and integrating would push further into it
        return (integral if held_back else grown), allowed

    def _remember(self, state: dict[str, Any], seen: Observation) -> dict[str, Any]:
        if state["initial"] is None:
            state["first"] = [*state["first"], seen.entropy]
            if len(state["first"]) >= self.baseline_steps:
                state["initial"] = fmean(state["first"])
        window = 2 * self.guard_steps
        state["entropies"] = [*state["entropies"], seen.entropy][-window:] if window else []
        state["rewards"] = [*state["rewards"], seen.reward][-window:] if window else []
        return state

    def _exploding(self, state: dict[str, Any], coefficient: float, target: float) -> bool:
        """Return whether entropy rose above its target over the window while reward fell, under a positive bonus."""
        window = self.guard_steps
        if not window or len(state["entropies"]) < 2 * window or coefficient <= 0:
            return False
        entropy, reward = ([fmean(state[key][:window]), fmean(state[key][window:])] for key in ("entropies", "rewards"))
        return entropy[1] > max(entropy[0], GUARD_MARGIN * target) and reward[1] < reward[0]

    def alert(self, state: dict[str, Any]) -> str:
        return state.get("alert", "")


PARTS = (EntropyTarget,)
PRESETS = (
    Preset(
        name="entropy-target",
        title="Target entropy",
        summary="GRPO with exact entropy held at a target of your choice: a PI controller moves the entropy "
        "coefficient between a floor and a cap after every step. The target may follow a drawn course and can be "
        "steered while the run is alive. A dial for diversity, no promise of higher reward.",
        when="You want entropy to be where you say, and to change it on the way.",
        reference=Reference(title="Isentrope's own controller; see docs/objectives.md"),
        confidence="own",
        parts=[GROUP, CLIP, BONUS, TOKENS, {"type": "entropy_target"}],
    ),
)
