"""Our own controller: hold entropy on a course with any actuator, by what a step is predicted to do to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from trainer.objectives.base import Observation, Outcome, Statistic, Step
from trainer.objectives.control import guard, observer
from trainer.objectives.control.actuators import ACTUATORS, Actuator, Kind
from trainer.objectives.control.flow import flows, variance_of_mean
from trainer.objectives.control.target import ScheduledTarget
from trainer.objectives.entropy_change.first_order import CHANGE_NEEDS
from trainer.objectives.preset import Preset, Reference
from trainer.objectives.stock import BONUS, CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from trainer.batch import TokenBatch

SMALLEST = 0.05  # nats; a target below it counts as this in relative errors
PATIENCE = 20  # steps at a limit, with the target out of reach, before a person is told
PROGRESS = 0.8  # an error that shrank below this share of itself meanwhile is on its way
NEAR = 0.05  # relative error below which a limit does no harm
SECOND = 0.95  # decay of the mean square gradient: optimisers of Adam's kind divide by its root
CALM = 0.8  # decay of the flows expected for the steps to come
RECENT = 0.96  # decay of the mean error


class Thermostat(ScheduledTarget):
    """Thermostat.

    Holds exact entropy at a target, constant or on a course, with the actuator of your choice. In every step it
    predicts from the gradient how entropy will move, to first order, with the actuator at rest and per unit of it; a
    filter compares that with what was measured, weighs the luck of the draw of prompts, and learns how strongly
    predictions come true and what moves entropy besides. The actuator is then set so that entropy meets its course a
    few steps ahead. Steering the target overrides the course from then on.
    """

    title: ClassVar[str] = "Thermostat"
    formula: ClassVar[str] = (
        r"u = \frac{H^*_{k+h} - \hat H_{k+1} - \sum_{j\le h}(\hat a\,\bar P_j + \hat d)}"
        r"{\hat b\,\sum_{j\le h} \bar U_j}"
    )
    needs: ClassVar[frozenset[Statistic]] = CHANGE_NEEDS
    type: Literal["thermostat"] = "thermostat"
    actuator: Kind = setting(
        "bonus",
        help="What is turned: the entropy coefficient, the weight of entropy-raising against entropy-lowering tokens, "
        "of negative against positive advantages, or the sampling temperature.",
    )
    cap: float | None = setting(
        None, help="Highest value of the actuator; empty takes 1 (bonus), 0.9 (balances) or 2 (temperature).", le=10
    )
    floor: float | None = setting(
        None,
        help="Lowest value of the actuator; empty takes -0.5 (bonus), -0.9 (balances) or 0.5 (temperature).",
        ge=-1,
    )
    slew: float | None = setting(
        None,
        help="Largest change of the actuator in a step, of its log for the temperature; empty takes 0.25 (bonus), 0.1 "
        "(temperature) or 0.2 (balances).",
        gt=0,
        le=10,
        advanced=True,
    )
    horizon: int = setting(
        5,
        help="Steps ahead at which entropy is to meet its course; fewer act faster and shake more. The temperature "
        "acts at once and needs none.",
        unit="steps",
        ge=1,
        le=1000,
        advanced=True,
    )
    pace: float = setting(
        0.05,
        help="Fastest approach to a target: share of the present entropy in a step. Optimisers like Adam overshoot "
        "when driven harder.",
        gt=0,
        le=10,
        advanced=True,
    )
    momentum: float = setting(
        0.8,
        help="Share of a gradient's effect that comes after its own step; somewhat below the optimiser's beta1.",
        ge=0,
        lt=1,
        advanced=True,
    )
    guard_steps: int = setting(
        10, help="Window of the explosion guard; 0 turns it off.", unit="steps", ge=0, le=1000, advanced=True
    )

    @model_validator(mode="after")
    def _ordered(self) -> Thermostat:
        low, high = self.limits
        if not low < high:
            raise ValueError(f"floor is {low:g}, not below cap, {high:g}; lower it")
        least, most = (0.05, 10.0) if self.device.logarithmic else (-1.0, 1.0)
        if low < least or high > most:
            raise ValueError(f"floor and cap of {self.device.said} must lie between {least:g} and {most:g}")
        return self

    # a part's demands depend on its actuator, so these stand in for the class variables of the same names
    @property
    def moves(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({self.device.knob, "entropy_target"})

    @property
    def requires(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({self.device.part} - {""})

    @property
    def device(self) -> Actuator:
        return ACTUATORS[self.actuator]

    @property
    def limits(self) -> tuple[float, float]:
        """Return the lowest and the highest value of the actuator."""
        low, high = self.floor, self.cap
        return self.device.low if low is None else low, self.device.high if high is None else high

    # -- within a step ------------------------------------------------------------------------------------------

    def watch(self, batch: TokenBatch, outcome: Outcome, step: Step) -> None:
        if batch.entropy is None or batch.sum_p2 is None or batch.sum_p2_logp is None:
            return  # recorded numbers may lack them; then the filter has measurements alone
        found = flows(batch, outcome, self.actuator, step.knobs.get(self.device.knob, self.device.rest))
        step.metrics |= {f"objective/flow_{name}": value for name, value in found.items()}
        step.metrics["objective/entropy_variance"] = variance_of_mean(batch)

    # -- between steps ------------------------------------------------------------------------------------------

    def initial_state(self) -> dict[str, Any]:
        return {
            **super().initial_state(),
            "filter": None,  # observer.py: entropy, gains, drift
            "flow": [0.0, 0.0],  # momentum of the policy's and the actuator's flow
            "expected": [0.0, 0.0],  # the policy's flow and the actuator's authority in the steps to come
            "square": 0.0,  # mean square gradient norm
            "rate": 0.0,  # highest learning rate so far
            "scale": 1.0,  # what a flow counts: learning rate over gradient norm
            "position": None,  # where the actuator stood in the last step
            "held": 0,  # steps at a limit with the target out of reach
            "far": 0.0,  # the relative error when that began
            "figures": {},
            "entropies": [],
            "rewards": [],
            "alert": "",
        }

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        if not math.isfinite(seen.entropy):
            return state, {}
        value = knobs.get(self.device.knob, self.device.rest)
        state = self.follow({**state, "alert": ""}, seen, knobs)
        state = self._measured(state, seen, self.device.position(value))
        state = self._moved(state, seen, self.device.position(value))
        if not self.known(state):
            return state, {}
        target = self.ahead(state, seen, knobs, 1)
        state["set"] = target
        if value > self.device.rest and guard.exploding(state, self.guard_steps, target):
            state |= {"entropies": [], "rewards": [], "held": 0}
            state["alert"] = (
                f"Entropy ran away upwards while reward fell: {self.device.said} was cut to {self.device.rest:g}."
            )
            return state, {self.device.knob: self.device.rest, "entropy_target": target}
        aim = target if self.device.logarithmic else self.ahead(state, seen, knobs, 1 + self.horizon)
        chosen, wanted = self._chosen(state, value, aim)
        state = self._judged(state, seen, chosen, wanted, self.ahead(state, seen, knobs, 0))
        return state, {self.device.knob: chosen, "entropy_target": target}

    def _measured(self, state: dict[str, Any], seen: Observation, position: float) -> dict[str, Any]:
        """Return the state with the filter brought to the measurement of this step."""
        variance = seen.metrics.get("objective/entropy_variance", (0.02 * seen.entropy) ** 2)
        device, known = self.device, state["filter"]
        if known is None:
            born = observer.born(
                seen.entropy, max(variance, 1e-12), policy_gain=device.gain, gain=device.gain, sure=device.sure
            )
            return {**state, "filter": born, **guard.remembered(state, seen, self.guard_steps)}
        policy, actuator = (flow * state["scale"] for flow in state["flow"])
        if device.logarithmic:
            actuator = state["expected"][1] * (position - state["position"])
        known = observer.predicted(known, policy, actuator)
        return {
            **state,
            "filter": observer.corrected(known, seen.entropy, variance),
            **guard.remembered(state, seen, self.guard_steps),
        }

    def _moved(self, state: dict[str, Any], seen: Observation, position: float) -> dict[str, Any]:
        """Return the state with the flows of this step's update."""
        metrics, first = seen.metrics, state["position"] is None
        policy = metrics.get("objective/flow_policy", 0.0)
        authority = metrics.get("objective/flow_authority", self.device.unmeasured)
        norm, rate = metrics.get("grad/norm", 1.0), metrics.get("lr", 1.0)
        square = norm**2 if first else SECOND * state["square"] + (1 - SECOND) * norm**2
        highest = max(state["rate"], rate)
        flow = zip(state["flow"], (policy, authority * position), strict=True)
        coming = zip(state["expected"], (policy, authority), strict=True)
        return {
            **state,
            "flow": [self.momentum * old + (1 - self.momentum) * new for old, new in flow],
            "expected": [new if first else CALM * old + (1 - CALM) * new for old, new in coming],
            "square": square,
            "rate": highest,
            "scale": rate / highest / math.sqrt(square) if square > 0 and highest > 0 else 0.0,
            "position": position,
        }

    def _chosen(self, state: dict[str, Any], value: float, aim: float) -> tuple[float, float]:
        """Return the actuator's next value, and the one it would take without limits, to meet `aim` (nats)."""
        entropy, policy_gain, log_gain, drift = state["filter"]["mean"]
        (policy, actuator), (expected, authority) = state["flow"], state["expected"]
        scale, device, gain = state["scale"], self.device, math.exp(log_gain)
        position, (low, high) = device.position(value), map(device.position, self.limits)
        if device.logarithmic:
            missing = aim - (entropy + policy_gain * policy * scale + drift)
            reach, origin = gain * authority, position
        else:
            late = self._late()  # steps' worth of flow that is still in the momentum
            own = policy_gain * scale * (policy * (1 + late) + expected * (self.horizon - late))
            drifts = observer.drifted(state["filter"], 1 + self.horizon)
            left = entropy + own + drifts + gain * scale * actuator * (1 + late)  # with it at rest
            missing = self._paced(aim, entropy, left) - left
            reach, origin = gain * scale * authority * (self.horizon - late), 0.0
        if abs(reach) < 1e-9:
            return value, value  # nothing to turn: no learning rate, or no token that the actuator touches
        wanted = origin + missing / reach
        slew = self.slew or device.slew
        allowed = min(max(wanted, low), high)
        allowed = min(max(allowed, position - slew), position + slew)
        return device.value(allowed), device.value(min(max(wanted, -20.0), 20.0))

    def _paced(self, aim: float, entropy: float, left: float) -> float:
        """Return the aim, no further than the pace allows; where entropy goes by itself it may go at any pace."""
        most = (1 + self.pace) ** (1 + self.horizon)
        lowest, highest = min(entropy / most, left), max(max(entropy, SMALLEST) * most, left)
        return min(max(aim, lowest), highest)

    def _late(self) -> float:
        """Return how many steps' worth of the present flow the momentum gives back within the horizon."""
        return self.momentum * (1 - self.momentum**self.horizon) / (1 - self.momentum)

    def _judged(
        self, state: dict[str, Any], seen: Observation, chosen: float, wanted: float, target: float
    ) -> dict[str, Any]:
        """Return the state with the error stated, and an alert where the target is out of reach."""
        mean, covariance = state["filter"]["mean"], state["filter"]["covariance"]
        scale = max(target, SMALLEST)
        error, old = (mean[observer.ENTROPY] - target) / scale, state["figures"]
        low, high = self.limits
        pinned = (chosen >= high and wanted > high) or (chosen <= low and wanted < low)
        held = state["held"] + 1 if pinned and abs(error) > NEAR else 0
        far = abs(error) if held == 1 else state["far"]
        stuck = held == PATIENCE and abs(error) > PROGRESS * far
        if held == PATIENCE and not stuck:  # a limit that only makes the way long is no news: look again later
            held = 0
        absolute = abs(seen.entropy - target) / scale
        before = old.get("objective/thermostat_mean_error", absolute)
        figures = {
            "objective/thermostat_entropy": mean[observer.ENTROPY],
            "objective/thermostat_error": error,
            "objective/thermostat_uncertainty": math.sqrt(max(covariance[0][0], 0.0)) / scale,
            "objective/thermostat_mean_error": RECENT * before + (1 - RECENT) * absolute,
            "objective/thermostat_gain": math.exp(mean[observer.ACTUATOR]),
            "objective/thermostat_policy_gain": mean[observer.POLICY],
            "objective/thermostat_drift": mean[observer.DRIFT],
            "objective/thermostat_saturated": float(pinned),
        }
        alert = self._out_of_reach(chosen, chosen >= high, error, target) if stuck else ""
        return {**state, "held": held, "far": far, "figures": figures, "alert": alert}

    def _out_of_reach(self, value: float, at_cap: bool, error: float, target: float) -> str:
        limit, turn = ("cap", "raise cap") if at_cap else ("floor", "lower floor")
        return (
            f"The entropy target of {target:.3g} nats cannot be reached: {self.device.said} has been at its {limit}, "
            f"{value:.3g}, for {PATIENCE} steps, and entropy is {abs(error):.0%} {'above' if error > 0 else 'below'}; "
            f"{turn}, choose another actuator, or a nearer target."
        )

    def report(self, state: dict[str, Any]) -> dict[str, float]:
        return state.get("figures", {})

    def alert(self, state: dict[str, Any]) -> str:
        return state.get("alert", "")


PARTS = (Thermostat,)
OURS = Reference(title="Isentrope's own controller; see docs/objectives.md")
PRESETS = (
    Preset(
        name="entropy-target",
        title="Target entropy",
        summary="GRPO with exact entropy held at a target of your choice by the thermostat, which sets the entropy "
        "coefficient after every step from the predicted change of entropy. The target may follow a drawn course and "
        "can be steered while the run is alive. A dial for diversity, no promise of higher reward.",
        when="You want entropy to be where you say, and to change it on the way.",
        formula=Thermostat.formula,
        reference=OURS,
        confidence="own",
        parts=[GROUP, CLIP, BONUS, TOKENS, {"type": "thermostat"}],
    ),
    Preset(
        name="entropy-target-temperature",
        title="Target entropy by temperature",
        summary="The thermostat sets the temperature that is sampled and trained at: the entropy of what the run sees "
        "stays on its course whatever the weights do. At temperature 1 the policy's own entropy still moves.",
        when="You want steady exploration, and no change to the loss.",
        reference=OURS,
        confidence="own",
        parts=[GROUP, CLIP, TOKENS, {"type": "thermostat", "actuator": "temperature"}],
    ),
)
