"""The thermostat in a closed loop: a small network that learns, measured, predicted and driven as a run is."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

import pytest
import torch

from trainer.batch import TokenBatch
from trainer.objectives import Objective, Observation, Step
from trainer.objectives.control import observer
from trainer.objectives.control.flow import flows, variance_of_mean

from .batches import DOUBLE, hand_batch, objective

PROMPTS, SAMPLES, LENGTH, VOCABULARY, FEATURES, STEPS, RATE = 64, 8, 3, 8, 8, 120, 3e-3
PARTS = {"bonus": [], "polarity": [{"type": "polarity_balance"}], "sign": [{"type": "sign_balance"}], "temperature": []}


def thermostat(actuator: str = "bonus", **fields) -> Objective:
    """Return GRPO with a thermostat on this actuator; the target is in nats unless told otherwise."""
    fields = {"measure": "nats", **fields}
    preset = "entropy-target" if actuator == "bonus" else "grpo"
    return objective(preset, *PARTS[actuator], {"type": "thermostat", "actuator": actuator, **fields})


@dataclass
class Run:
    """What a run left behind: entropies and targets in nats, values of the actuator, figures, alerts."""

    entropies: list[float] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    knobs: list[dict[str, float]] = field(default_factory=list)
    figures: list[dict[str, float]] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)

    def error(self) -> float:
        """Return the mean relative error over the last half."""
        pairs = list(zip(self.entropies, self.targets, strict=True))[len(self.targets) // 2 :]
        return fmean(abs(entropy - target) / target for entropy, target in pairs)


class Policy(torch.nn.Module):
    """A small network over random prompts: its weights are shared, and every step draws other prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(FEATURES, 32), torch.nn.Tanh())
        self.head = torch.nn.Linear(32, LENGTH * VOCABULARY)
        torch.nn.init.normal_(self.head.weight, std=0.45)

    def forward(self, prompts: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(prompts)).view(-1, LENGTH, VOCABULARY)


def batch_of(policy: Policy, temperature: float) -> tuple[TokenBatch, torch.Tensor, torch.Tensor]:
    """Sample completions of fresh prompts; return the batch, and its differentiable log-probs and entropies.

    An answer is right if the sum of its digits modulo 4 is the place of the largest of the prompt's first 4 features.
    """
    prompts = torch.randn(PROMPTS, FEATURES)
    drawn = torch.distributions.Categorical(logits=policy(prompts) / temperature)
    tokens = drawn.sample((SAMPLES,)).transpose(0, 1)  # [PROMPTS, SAMPLES, LENGTH]
    logp = drawn.logits[:, None].expand(-1, SAMPLES, -1, -1)
    logprob = logp.gather(-1, tokens[..., None]).flatten()
    entropy = drawn.entropy()[:, None].expand(-1, SAMPLES, -1).flatten()
    owner = torch.arange(PROMPTS * SAMPLES)
    p2 = (2 * logp).exp().detach()
    right = tokens.sum(-1) % 4 == prompts[:, :4].argmax(-1)[:, None]
    return (
        TokenBatch(
            logprob=logprob.detach(),
            entropy=entropy.detach(),
            sum_p2=p2.sum(-1).flatten(),
            sum_p2_logp=(p2 * logp.detach()).sum(-1).flatten(),
            sequence=owner.repeat_interleave(LENGTH),
            position=torch.arange(LENGTH).repeat(len(owner)),
            group=owner // SAMPLES,
            reward=right.to(logprob.dtype).flatten(),
            length=torch.full_like(owner, LENGTH),
        ),
        logprob,
        entropy,
    )


def live(
    machine: Objective,
    seed: int,
    *,
    steps: int = STEPS,
    steer: Callable[[int], dict[str, float]] = lambda step: {},
    restart: bool = False,
) -> Run:
    """Train under an objective as a run does; `restart` sends the controllers' state through JSON in every step."""
    torch.manual_seed(seed)
    policy = Policy()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    state = machine.start()
    knobs = {"temperature": 1.0} | {name: knob.value for name, knob in machine.knobs().items()}
    found = Run()
    for step in range(1, steps + 1):
        knobs |= steer(step)
        batch, logprob, entropy = batch_of(policy, knobs["temperature"])
        now = Step(knobs=dict(knobs), step=step, total_steps=steps)
        outcome = machine.apply(machine.prepare(batch, now), now)
        loss = (logprob * outcome.grad_logprob).sum()
        if outcome.grad_entropy is not None:
            loss = loss + (entropy * outcome.grad_entropy).sum()
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        band = machine.target(step, steps, knobs)
        found.entropies.append(float(batch.need("entropy").mean()))
        found.targets.append(band[0] if band else math.nan)
        found.rewards.append(float(batch.reward.mean()))
        metrics = {**now.metrics, "grad/norm": float(norm), "lr": RATE}
        seen = Observation(step, steps, found.entropies[-1], 0.0, found.rewards[-1], metrics=metrics)
        state, changed = machine.control(json.loads(json.dumps(state)) if restart else state, seen, knobs)
        knobs |= changed
        found.knobs.append(dict(knobs))
        found.figures.append(machine.report(state))
        found.alerts += machine.alerts(state)
    return found


@pytest.fixture
def seed() -> int:
    value = random.randrange(2**31)
    print(f"seed {value}")
    return value


# -- closed loop ------------------------------------------------------------------------------------------------------

COURSES = {
    "constant": {"target": 1.0},
    "linear": {"target": 1.15, "schedule": "linear"},
    "drawn": {"schedule": "drawn", "points": [[0.0, 1.0], [0.5, 1.15], [1.0, 0.95]]},
}


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("actuator", ["bonus", "polarity", "temperature"])
def test_entropy_follows_its_course(actuator: str, course: str, seed: int) -> None:
    found = live(thermostat(actuator, measure="initial", **COURSES[course]), seed)
    assert found.error() < 0.12
    assert fmean(found.rewards[-20:]) > 0.2  # noise would have 0.25: it still answers, if not better
    assert abs(found.figures[-1]["objective/thermostat_error"]) < 0.2


def test_plain_grpo_would_have_lost_it(seed: int) -> None:
    plain = live(objective("grpo"), seed)
    assert plain.entropies[-1] < 0.85 * plain.entropies[0]


def test_signs_can_only_slow_the_fall_and_the_error_is_stated(seed: int) -> None:
    initial = live(objective("grpo"), seed, steps=3).entropies[0]
    found = live(thermostat("sign", target=1.25 * initial), seed)
    assert found.error() > 0.1
    assert found.figures[-1]["objective/thermostat_error"] < -0.1
    assert found.figures[-1]["objective/thermostat_mean_error"] > 0.1


def test_a_steered_target_is_met_from_both_sides(seed: int) -> None:
    found = live(
        thermostat("temperature", target=1.6), seed, steer=lambda step: {"entropy_target": 1.3} if step == 50 else {}
    )
    assert found.targets[48] == 1.6
    assert set(found.targets[49:]) == {1.3}
    assert found.error() < 0.1


def test_a_restart_from_json_changes_nothing(seed: int) -> None:
    whole, again = (live(thermostat(target=1.4), seed, steps=25, restart=restart) for restart in (False, True))
    assert whole.knobs == again.knobs
    assert whole.figures == again.figures


# -- limits ----------------------------------------------------------------------------------------------------------


def test_the_actuator_keeps_its_limits_and_its_slew(seed: int) -> None:
    found = live(thermostat(target=2.0, cap=0.2, floor=-0.05, slew=0.03), seed, steps=40)
    values = [0.0, *(knobs["entropy_coefficient"] for knobs in found.knobs)]
    assert all(-0.05 <= value <= 0.2 for value in values)
    assert all(abs(b - a) <= 0.03 + 1e-12 for a, b in itertools.pairwise(values))


def plant(
    machine: Objective, steps: int, *, push: float = 0.05, fall: float = 0.02, target: Callable[[int], float | None]
) -> tuple[list[float], list[float], list[str]]:
    """Return entropies, coefficients and alerts on a plant without luck: what flows predict comes true."""
    state, knobs = machine.start(), {name: knob.value for name, knob in machine.knobs().items()}
    entropy, entropies, values, alerts = 0.9, [], [], []
    for step in range(1, steps + 1):
        if (wanted := target(step)) is not None:
            knobs["entropy_target"] = wanted
        metrics = {
            "objective/flow_policy": -fall,
            "objective/flow_authority": push,
            "objective/entropy_variance": 1e-6,
            "lr": 1e-4,
            "grad/norm": 1.0,
        }
        state, changed = machine.control(
            state, Observation(step, steps, entropy, entropy, 0.5, metrics=metrics), dict(knobs)
        )
        entropies.append(entropy)
        entropy = max(0.0, entropy + push * knobs["entropy_coefficient"] - fall * entropy)
        knobs |= changed
        values.append(knobs["entropy_coefficient"])
        alerts += machine.alerts(state)
    return entropies, values, alerts


def test_nothing_winds_up_while_a_limit_holds_and_a_person_is_told_once() -> None:
    machine = thermostat(target=2.0, cap=0.1)  # the bonus at its cap would carry entropy to 1
    _, values, alerts = plant(machine, 120, fall=0.005, target=lambda step: 0.5 if step == 81 else None)
    assert set(values[20:80]) == {0.1}  # out of reach, and held at the cap for sixty steps
    assert len(alerts) == 1
    assert "the entropy coefficient has been at its cap, 0.1, for 20 steps" in alerts[0]
    assert "raise cap" in alerts[0]
    assert values[84] < 0  # lets go as fast as the slew allows, not after sixty steps
    told = [step for step in range(1, 121) if plant(machine, step, fall=0.005, target=lambda _: None)[2]]
    assert told[0] == pytest.approx(20, abs=3)


def test_a_target_within_reach_raises_no_alert() -> None:
    entropies, values, alerts = plant(thermostat(target=0.7), 150, target=lambda _: None)
    assert not alerts
    assert fmean(entropies[-20:]) == pytest.approx(0.7, rel=0.02)
    assert values[-1] == pytest.approx(0.02 * 0.7 / 0.05, rel=0.2)  # the coefficient that balances the fall


def test_nothing_to_turn_leaves_the_actuator_alone() -> None:
    machine = thermostat(target=0.5)
    knobs = {"entropy_target": 0.5, "entropy_coefficient": 0.02}
    for metrics in ({"lr": 0.0}, {"grad/norm": 0.0}, {"objective/flow_authority": 0.0}):
        seen = Observation(1, 10, 0.9, 0.9, 0.0, metrics=metrics)
        state, changed = machine.control(machine.start(), seen, knobs)
        assert changed.get("entropy_coefficient", 0.02) == 0.02
    for entropy in (math.nan, math.inf):
        assert machine.control(state, Observation(3, 10, entropy, 0.0, 0.0), knobs) == (state, {})
    state, _ = machine.control(state, Observation(4, 10, 0.0, 0.0, 0.0), knobs)  # a policy without any entropy
    assert all(math.isfinite(figure) for figure in machine.report(state).values())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"floor": 0.5, "cap": 0.2}, "not below cap"),
        ({"actuator": "temperature", "floor": 0.0}, "between 0.05 and 10"),
        ({"actuator": "polarity"}, "needs polarity_balance"),
    ],
)
def test_impossible_settings_are_refused(fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        objective("entropy-target", {"type": "thermostat", **fields})


# -- what is predicted ------------------------------------------------------------------------------------------------


def whole_table() -> tuple[torch.Tensor, TokenBatch]:
    """Return logits of one state with probabilities in eighths, and a batch that holds each choice in proportion."""
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=DOUBLE).log()
    choices = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
    p = logits.exp()
    entropy = -(p * logits).sum()
    return choices, hand_batch(
        [1] * 8,
        [1.0, 0, 0, 1, 0, 1, 0, 1],
        [0, 0, 0, 0, 1, 1, 1, 1],
        logprob=logits[choices],
        entropy=entropy.expand(8).clone(),
        sum_p2=p.square().sum().expand(8).clone(),
        sum_p2_logp=(p.square() * logits).sum().expand(8).clone(),
    )


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("coefficient", [0.0, 0.3, -0.2])
def test_the_predicted_flow_is_the_derivative_of_the_entropies(coefficient: float) -> None:
    choices, batch = whole_table()
    machine = thermostat(target=1.0)
    now = Step(knobs={"entropy_coefficient": coefficient}, total_steps=10)
    outcome = machine.apply(machine.prepare(batch, now), now)
    found = flows(batch, outcome, "bonus", coefficient)
    own = (
        torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=DOUBLE).log().repeat(8, 1).requires_grad_()
    )  # each its own logits
    surrogate = (own.log_softmax(-1)[torch.arange(8), choices] * outcome.grad_logprob).sum()
    if outcome.grad_entropy is not None:
        surrogate = surrogate + (entropy_of(own) * outcome.grad_entropy).sum()
    (down,) = torch.autograd.grad(surrogate, own)
    (slope,) = torch.autograd.grad(entropy_of(own).sum(), own)
    assert found["policy"] + coefficient * found["authority"] == pytest.approx(float(-(slope * down).sum()), rel=1e-9)
    assert found["authority"] == pytest.approx(float(slope.square().sum(-1).mean()), rel=1e-9)


@pytest.mark.parametrize("kind", ["polarity", "sign"])
@pytest.mark.parametrize("value", [0.0, 0.4, -0.9])
def test_authority_is_how_the_flow_changes_with_a_balance(kind: str, value: float) -> None:
    _, batch = whole_table()
    machine, knob = thermostat(kind, target=1.0), f"{kind}_balance"

    def flow(at: float) -> dict[str, float]:
        now = Step(knobs={knob: at}, total_steps=10)
        return flows(batch, machine.apply(machine.prepare(batch, now), now), kind, at)

    rest, here = flow(0.0), flow(value)
    assert here["policy"] == pytest.approx(rest["policy"], rel=1e-9)
    assert here["authority"] == pytest.approx(rest["authority"], rel=1e-9)
    assert kind == "sign" or here["authority"] > 0


def test_authority_of_the_temperature_is_the_slope_of_entropy_by_its_log() -> None:
    _, batch = whole_table()
    machine = thermostat("temperature", target=1.0)
    now = Step(total_steps=10)
    found = flows(batch, machine.apply(machine.prepare(batch, now), now), "temperature", 1.0)
    logits, small = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=DOUBLE).log(), 1e-5
    hot, cold = (float(entropy_of(logits / math.exp(step))) for step in (small, -small))
    assert found["authority"] == pytest.approx((hot - cold) / (2 * small), rel=1e-6)


def test_the_variance_of_a_mean_is_that_of_prompts_not_of_tokens() -> None:
    entropy = torch.tensor([1.0, 1.0, 3.0, 3.0], dtype=DOUBLE)
    batch = hand_batch([1] * 4, [0.0] * 4, [0, 0, 1, 1], entropy=entropy)
    assert variance_of_mean(batch) == pytest.approx(1.0)  # two prompts at 1 and 3: s^2 = 2, over 2
    assert variance_of_mean(batch.replace(group=torch.zeros(4, dtype=torch.long))) == 0.0


# -- the filter -------------------------------------------------------------------------------------------------------


def test_the_filter_learns_gains_and_is_nearer_than_what_is_measured(seed: int) -> None:
    dice = random.Random(seed)
    entropy, luck, state, push = 0.5, 0.03, None, 0.0
    raw, filtered = [], []
    for step in range(400):
        measured = entropy + dice.gauss(0, luck)
        if state is None:
            state = observer.born(measured, luck**2, policy_gain=0.7, gain=0.7, sure=1.5)
        else:
            state = observer.corrected(observer.predicted(state, 0.0, push), measured, luck**2)
        if step >= 100:
            raw.append(abs(measured - entropy))
            filtered.append(abs(state["mean"][observer.ENTROPY] - entropy))
        push = 0.01 * (1 if step % 60 < 30 else -1)
        entropy += 2.0 * push
    assert math.exp(state["mean"][observer.ACTUATOR]) == pytest.approx(2.0, rel=0.6)
    assert fmean(filtered) < 0.75 * fmean(raw)


def test_a_variance_that_never_shows_is_believed_less(seed: int) -> None:
    state = observer.born(0.5, 0.01, policy_gain=0.7, gain=0.7, sure=1.5)
    for _ in range(60):
        state = observer.corrected(observer.predicted(state, 0.0, 0.0), 0.5, 0.01)
    assert state["luck"] < 0.1
