"""Controllers on a plant that behaves like a policy: entropy falls by itself, a bonus pushes it up."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable

import pytest

from trainer.objectives import Objective, Observation

from .batches import objective

STEPS = 160


def simulate(
    machine: Objective,
    *,
    entropy: float = 0.9,
    fall: float = 0.03,
    push: float = 0.15,
    noise: float = 0.005,
    steer: Callable[[int, dict[str, float]], dict[str, float]] = lambda step, knobs: {},
    reward: Callable[[int, float], float] = lambda step, entropy: 0.5,
    restart_at: int | None = None,
) -> tuple[list[float], list[dict[str, float]], list[str]]:
    """Return entropies, knobs after each step and alerts; dH = push * coefficient - fall * H, plus noise."""
    dice = random.Random(7)
    state, knobs = machine.start(), {name: knob.value for name, knob in machine.knobs().items()}
    entropies, course, alerts = [], [], []
    for step in range(STEPS):
        knobs |= steer(step, knobs)
        measured = max(0.0, entropy + dice.gauss(0, noise))
        entropies.append(measured)
        seen = Observation(step, STEPS, measured, measured, reward(step, measured))
        state, changed = machine.control(state, seen, dict(knobs))
        if step == restart_at:
            state = json.loads(json.dumps(state))
        knobs |= changed
        alerts += machine.alerts(state)
        course.append(dict(knobs))
        entropy = max(0.0, entropy + push * knobs["entropy_coefficient"] - fall * entropy)
    return entropies, course, alerts


def mean_of_last(entropies: list[float], steps: int = 20) -> float:
    return sum(entropies[-steps:]) / steps


def held(**fields) -> Objective:
    return objective("entropy-target", {"type": "thermostat", **fields})


@pytest.mark.parametrize("target", [0.3, 0.6, 1.2])
def test_the_target_is_tracked_both_ways(target: float) -> None:
    entropies, course, alerts = simulate(held(target=target, measure="nats"), push=0.2)
    assert mean_of_last(entropies) == pytest.approx(target, rel=0.1)
    assert course[-1]["entropy_target"] == target
    assert not alerts


def test_a_policy_that_keeps_its_entropy_is_pulled_down_by_a_negative_coefficient() -> None:
    entropies, course, _ = simulate(held(target=0.5, measure="nats"), fall=0.0)
    assert min(knobs["entropy_coefficient"] for knobs in course) < 0
    assert mean_of_last(entropies) == pytest.approx(0.5, rel=0.1)


def test_a_relative_target_is_taken_of_the_first_steps() -> None:
    machine = held(target=0.6)
    entropies, course, _ = simulate(machine)
    initial = sum(entropies[:5]) / 5
    assert course[-1]["entropy_target"] == pytest.approx(0.6 * initial)
    assert mean_of_last(entropies) == pytest.approx(0.6 * initial, rel=0.1)
    assert machine.target(2, STEPS, course[2]) is None
    assert machine.target(50, STEPS, course[50]) == pytest.approx((0.6 * initial, 0.6 * initial))


def test_limits_hold_and_the_coefficient_moves_no_faster_than_its_slew() -> None:
    _, course, _ = simulate(held(target=2.0, measure="nats", cap=0.2, slew=0.03))
    values = [0.0, *(knobs["entropy_coefficient"] for knobs in course)]
    assert max(values) == pytest.approx(0.2)
    assert all(abs(b - a) <= 0.03 + 1e-12 for a, b in itertools.pairwise(values))


def test_the_integral_does_not_wind_up_while_the_cap_holds() -> None:
    machine = held(target=2.0, measure="nats", cap=0.05)  # out of reach: saturated for a hundred steps

    def steer(step: int, knobs: dict[str, float]) -> dict[str, float]:
        return {"entropy_target": 0.1} if step == 100 else {}

    _, course, _ = simulate(machine, steer=steer)
    assert course[99]["entropy_coefficient"] == pytest.approx(0.05)
    # lets go within the slew limit, not after a hundred steps
    assert min(knobs["entropy_coefficient"] for knobs in course[100:104]) < 0


def test_a_steered_target_overrides_the_schedule_from_then_on() -> None:
    machine = held(target=0.2, measure="nats", schedule="linear", start=0.9)

    def steer(step: int, knobs: dict[str, float]) -> dict[str, float]:
        return {"entropy_target": 0.7} if step == 60 else {}

    entropies, course, _ = simulate(machine, steer=steer, push=0.2)
    assert course[29]["entropy_target"] == pytest.approx(0.9 - 0.7 * 30 / STEPS)
    assert all(knobs["entropy_target"] == 0.7 for knobs in course[60:])
    assert mean_of_last(entropies) == pytest.approx(0.7, rel=0.1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "drawn"])
def test_schedules_are_followed(schedule: str) -> None:
    points = {"points": [[0.0, 0.9], [1.0, 0.4]]} if schedule == "drawn" else {"start": 0.9, "target": 0.4}
    entropies, course, _ = simulate(held(measure="nats", schedule=schedule, **points))
    assert course[-1]["entropy_target"] == pytest.approx(0.4)
    middle = course[STEPS // 2 - 1]["entropy_target"]
    assert middle == pytest.approx(0.65)
    assert entropies[STEPS // 2] == pytest.approx(middle, rel=0.15)


def test_a_schedule_without_a_start_begins_at_the_measured_entropy() -> None:
    _, course, _ = simulate(
        held(measure="nats", schedule="linear", target=0.3, until=0.5), noise=0.0, fall=0.0, push=0.0
    )
    assert course[5]["entropy_target"] == pytest.approx(0.9 - 0.6 * 6 / (STEPS / 2))
    assert course[STEPS // 2]["entropy_target"] == pytest.approx(0.3)


def runaway(machine: Objective, *, reward_slope: float) -> list[float]:
    """Return the coefficient after each step of a runaway in which the controller finds its coefficient at 0.3."""
    state, found = machine.start(), []
    for step in range(25):
        seen = Observation(step, STEPS, 0.5 + 0.05 * step, 0.5, 0.5 + reward_slope * step)
        knobs = {"entropy_target": 0.6, "entropy_coefficient": 0.3}
        state, changed = machine.control(state, seen, knobs)
        found.append(changed.get("entropy_coefficient", 0.3))
        if machine.alerts(state):
            assert "cut to 0" in machine.alerts(state)[0]
            break
    return found


def test_the_guard_cuts_a_runaway_at_once_and_says_so() -> None:
    machine = held(target=0.6, measure="nats", slew=0.05)
    found = runaway(machine, reward_slope=-0.01)
    assert found[-1] == 0
    assert len(found) == 20  # two windows of ten steps
    assert min(found[:-1]) >= 0.25  # until then no faster than the slew limit
    harmless = runaway(machine, reward_slope=+0.01)
    assert len(harmless) == 25
    assert min(harmless) >= 0.25


def test_state_is_json_and_a_restart_changes_nothing() -> None:
    machine = held(schedule="cosine", target=0.5)
    assert simulate(machine) == simulate(machine, restart_at=37)


def test_a_measurement_that_is_no_number_moves_nothing() -> None:
    for preset in ("entropy-target", "skywork-adaptive", "aepo"):
        machine = objective(preset)
        state = machine.start()
        seen = Observation(0, 10, math.nan, math.nan, math.nan)
        assert machine.control(state, seen, {}) == (state, {})


def test_skywork_keeps_a_floor_and_rests_above_it() -> None:
    machine = objective("skywork-adaptive", {"type": "skywork", "floor": 0.4, "delta": 0.01, "highest": 0.3})
    entropies, course, _ = simulate(machine)
    assert course[3]["entropy_enabled"] == 0.0
    assert course[-1]["entropy_coefficient"] > 0
    assert machine.target(9, STEPS, {}) == (0.4, 0.4)
    assert entropies[-1] > simulate(objective("skywork-adaptive", {"type": "skywork", "floor": 0.0}))[0][-1]
