"""QwenLong's gate, SAFE, EntroPIC, ARES's controllers: by hand, and against their formulas over random histories."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from trainer.batch import TokenBatch
from trainer.objectives import Objective, Observation, Step, evaluate

from .batches import DOUBLE, doubles, hand_batch, objective, run
from .golden import Recording, control_histories
from .test_controllers import mean_of_last
from .test_signs import change, entropy_of, table

CONTROLLED = ["qwenlong-aepo", "safe", "safe-asymmetric", "entropic", "ares"]


def seen(entropy: float = 1.0, *, reward: float = 0.5, kl: float = 0.0, **metrics: float) -> Observation:
    figures = {f"objective/{name}": value for name, value in metrics.items()}
    return Observation(0, 100, entropy, entropy, reward, kl, figures)


def course(machine: Objective, observations: list[Observation]) -> list[dict[str, float]]:
    """Return the knobs in force after each observation."""
    state, knobs, found = machine.start(), {name: knob.value for name, knob in machine.knobs().items()}, []
    for observation in observations:
        state, changed = machine.control(json.loads(json.dumps(state)), observation, knobs)  # as a checkpoint keeps it
        knobs = {**knobs, **changed}
        found.append(knobs)
    return found


@pytest.mark.parametrize("preset", CONTROLLED)
def test_a_measurement_that_is_no_number_moves_nothing(preset: str) -> None:
    machine = objective(preset)
    nothing = Observation(0, 10, math.nan, math.nan, math.nan, math.nan, {"objective/kl_easy": math.nan})
    assert machine.control(machine.start(), nothing, {})[1] == {}


# -- QwenLong's gate --------------------------------------------------------------------------------------------------

GATE = {"type": "negative_gate", "low": 0.2, "high": 0.4}


def test_the_gate_closes_above_and_opens_below_and_rests_between() -> None:
    levels = [0.3, 0.41, 0.3, 0.21, 0.19, 0.3, 0.4]
    found = course(objective("qwenlong-aepo", GATE), [seen(level) for level in levels])
    assert [knobs["negative_gate"] for knobs in found] == [1, 0, 0, 0, 1, 1, 1]


def uncertain(level: float, **fields) -> TokenBatch:
    count = 3
    return hand_batch(
        [1] * count,
        [1.0, 0.0, 0.0],
        old_entropy=torch.full((count,), level, dtype=DOUBLE),
        entropy=torch.full((count,), level, dtype=DOUBLE),
        extra={"task": torch.zeros(count, dtype=DOUBLE)},
        **fields,
    )


@pytest.mark.parametrize(("level", "before", "kept"), [(0.5, 1, 1), (0.3, 0, 1), (0.3, 1, 3), (0.1, 0, 3)])
def test_a_closed_gate_drops_negatives_of_the_same_step(level: float, before: float, kept: int) -> None:
    machine = objective("qwenlong-aepo", GATE)
    now = Step(knobs={"negative_gate": before})
    prepared = machine.prepare(uncertain(level), now)
    assert prepared.mask.tolist() == [1] * kept + [0] * (3 - kept)
    _, changed = machine.control(machine.start(), seen(9.0, sample_entropy=level), now.knobs)
    assert changed.get("negative_gate", before) == float(kept == 3)


def test_the_gate_reads_the_mean_over_completions_not_over_tokens() -> None:
    batch = hand_batch([1, 3], [1.0, 0.0], old_entropy=doubles(1.0, 0.2, 0.2, 0.2), extra={"task": doubles(0, 0)})
    now = Step()
    objective("qwenlong-aepo").prepare(batch, now)
    assert now.metrics["objective/sample_entropy"] == pytest.approx(0.6)


def test_a_closed_gate_lowers_entropy_where_likely_choices_were_right() -> None:
    def moved(high: float) -> float:
        parts = [{"type": "group_norm"}, {"type": "negative_gate", "low": 0.0, "high": high}]
        return change(objective("qwenlong-aepo", *parts), right=False)

    # wrong likely choices: learning from negatives raises entropy, and a closed gate takes that push away
    assert moved(20.0) > 0
    assert moved(0.0) < moved(20.0)


def test_edges_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match=r"low is 0\.5, above high"):
        objective("qwenlong-aepo", {"type": "negative_gate", "low": 0.5, "high": 0.4})


def test_uncertain_negatives_lose_their_gradient_and_stay_in_the_denominator() -> None:
    batch = hand_batch(
        [2, 2], [0.0, 0.0], advantage=doubles(1, 1, -1, -1), entropy=doubles(2.0, 0.1, 2.0, 0.5), old_logprob=None
    )
    by_token = run(objective("grpo", {"type": "uncertain_negatives"}), batch)
    assert by_token.weight.tolist() == [1, 1, 0, -1]
    assert by_token.grad_logprob[0] == -1 / 4
    by_row = run(objective("grpo", {"type": "uncertain_negatives", "select": "completion"}), batch)
    assert by_row.weight.tolist() == [1, 1, 0, 0]


def test_the_task_advantage_divides_by_the_std_of_its_task() -> None:
    batch = hand_batch(
        [1] * 6, [1.0, 0.0, 5.0, 1.0, 3.0, 3.0], [0, 0, 1, 1, 2, 2], extra={"task": doubles(0, 0, 1, 1, 1, 1)}
    )
    found = objective("grpo", {"type": "task_norm"}).prepare(batch, Step()).advantage
    tasks = math.sqrt(0.5), math.sqrt((2**2 + 2**2) / 3)
    expected = [0.5 / tasks[0], -0.5 / tasks[0], 2 / tasks[1], -2 / tasks[1], 0, 0]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    one = batch.replace(extra={"task": torch.zeros(6, dtype=DOUBLE)})
    alike = objective("grpo", {"type": "group_norm", "std": "batch"}).prepare(one, Step()).advantage
    assert objective("grpo", {"type": "task_norm"}).prepare(one, Step()).advantage.tolist() == pytest.approx(
        alike.tolist()
    )


# -- SAFE -------------------------------------------------------------------------------------------------------------


def safe_by_formula(calls: list[tuple[float, float, float]]) -> list[dict[str, float]]:
    """Return threshold, penalty and smoothed divergence after each (kl, entropy, reward), straight from the card."""
    short, average, total, last, rewards, rows = 0.0, None, 0.0, 0.0, [], []
    for kl, entropy, reward in calls:
        short = 0.9 * short + 0.1 * kl
        rewards.append(reward)
        if average is None:
            average, pid = reward, 0.0
        else:
            fresh = 0.95 * average + 0.05 * reward
            error = fresh - average - 0.001
            total = max(-1.0, min(1.0, total + error))
            pid = 0.3 * error + 0.01 * total + 0.05 * (error - last)
            average, last = fresh, error
        recent = torch.tensor(rewards[-50:], dtype=DOUBLE)
        before = torch.tensor(rewards[-100:-50], dtype=DOUBLE) if len(rewards) >= 100 else recent
        if len(rewards) < 50:
            scale = 1.5
        elif recent.mean() > before.mean() + 0.01:
            scale = 1.2
        else:
            scale = 1.0 if recent.std(correction=0) < 0.02 and recent.mean() > 0.7 else 0.8
        threshold = max(0.1, min(0.6, (0.3 + pid) * scale))
        factor = max(0.5, 2.0 / (entropy + 0.1))
        penalty = 0.1 * (short - threshold) ** 2 * factor if short > threshold else 0.0
        rows.append({"threshold": threshold, "penalty": penalty, "kl_short": short, "active": short > threshold})
    return rows


def random_calls(dice: random.Random) -> list[tuple[float, float, float]]:
    """Return 160 steps that rise, settle near 0.8 and swing, so that every phase occurs."""
    calls = []
    for step in range(160):
        reward = 0.2 + 0.006 * step if step < 100 else 0.8 + dice.uniform(-0.01, 0.01)
        calls.append((dice.uniform(-0.2, 1.5), dice.uniform(0.1, 6.0), reward + dice.uniform(-0.005, 0.005)))
    return calls


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


def test_safe_follows_its_formula_call_by_call(dice: random.Random) -> None:
    calls = random_calls(dice)
    rows = safe_by_formula(calls)
    inputs = dict(zip(("kl", "entropy", "reward"), map(list, zip(*calls, strict=True)), strict=True))
    found = list(control_histories.safe(Recording("safe__entropy_gated_kl", inputs, rows, {}, "float64")))
    assert [item.quantity for item in found] == ["penalty", "threshold", "active", "smoothed"]
    assert all(item.error <= 1e-9 for item in found)


def test_safe_passes_through_all_its_phases() -> None:
    steady = [seen(reward=0.8)] * 60
    rising = [seen(reward=0.005 * step) for step in range(110)]
    swinging = [seen(reward=step % 2) for step in range(60)]
    thresholds = [course(objective("safe"), run)[-1]["kl_threshold"] for run in (steady[:10], rising, steady, swinging)]
    assert thresholds == pytest.approx([0.45, 0.36, 0.3, 0.24], abs=0.02)


def test_safe_holds_harder_where_entropy_is_low_and_not_at_all_as_released() -> None:
    def price(entropy: float, **fields) -> float:
        machine = objective("safe", {"type": "safe_pid", **fields})
        return course(machine, [seen(entropy, kl=2.0)] * 30)[-1]["kl_coefficient"]

    assert price(0.1) > price(2.0) > price(8.0) > 0
    assert price(0.1, variant="released") == 0.0
    calm = course(objective("safe"), [seen(0.1, kl=0.2)] * 30)[-1]
    assert (calm["kl_coefficient"], calm["kl_excess"]) == (0.0, 0.0)


def test_the_price_is_the_derivative_of_the_penalty() -> None:
    smoothed = 1e-6
    states = [{**objective("safe").start()["safe_pid"], "kl": kl} for kl in (1.0, 1.0 + smoothed)]
    machine = objective("safe")
    low, high = (machine.control({"safe_pid": state}, seen(0.5, kl=1.0), {})[1] for state in states)
    slope = (high["kl_excess"] - low["kl_excess"]) / (0.9 * smoothed)
    assert low["kl_coefficient"] == pytest.approx(slope, rel=1e-4)


def test_the_priced_divergence_pulls_the_policy_back() -> None:
    batch = hand_batch(
        [1, 1], [0.0, 0.0], ref_logprob=doubles(-2.0, -0.5), entropy=doubles(1.0, 1.0), advantage=doubles(0, 0)
    )
    outcome = run(objective("safe"), batch, knobs={"kl_coefficient": 0.2})
    assert outcome.grad_logprob.tolist() == pytest.approx([0.2 * 1.0 / 2, -0.2 * 0.5 / 2])


def asymmetric_by_formula(kls: list[float], window: int = 50) -> list[float]:
    found = []
    for step, kl in enumerate(kls):
        rise = (kl - kls[step - window + 1]) / window if step + 1 >= window else 0.0
        found.append(0.1 * max(kl - 0.3, 0.0) ** 2 + 5.0 * max(rise, 0.0) ** 2)
    return found


def test_the_asymmetric_penalty_follows_its_formula(dice: random.Random) -> None:
    kls = [dice.uniform(-0.5, 1.0) + 0.02 * step for step in range(120)]
    rows = [{"penalty": value} for value in asymmetric_by_formula(kls)]
    for inputs in ({"kl": kls}, kls):
        (item,) = control_histories.safe_asymmetric(Recording("safe__asymmetric_kl", inputs, rows, {}, "float64"))
        assert item.error <= 1e-12


def test_below_its_threshold_the_policy_is_free() -> None:
    falling = [seen(kl=0.3 - 0.01 * step) for step in range(60)]
    assert all(knobs["kl_coefficient"] == 0 for knobs in course(objective("safe-asymmetric"), falling))
    risen = course(objective("safe-asymmetric"), [seen(kl=-1 + 0.01 * step) for step in range(60)])
    assert risen[48]["kl_coefficient"] == 0
    assert risen[49]["kl_coefficient"] == pytest.approx(2 * 5 * (0.49 / 50) / 50)


# -- EntroPIC ---------------------------------------------------------------------------------------------------------


def test_entropic_follows_its_formula(dice: random.Random) -> None:
    entropies = [dice.uniform(0.1, 1.2) for _ in range(12)]
    carried, rows = 0.0, []
    for entropy in entropies:
        alpha = carried + entropy - 0.5
        carried = alpha - 0.99 * (entropy - 0.5)
        rows.append({"alpha": alpha, "last_alpha": carried, "weights": [1 + alpha, 1 - alpha]})
    recording = Recording("entropic_pi_controller", {"entropies": entropies}, rows, {"target_entropy": 0.5}, "float64")
    found = list(control_histories.entropic(recording))
    assert [item.quantity for item in found] == ["alpha", "carried", "weight"]
    assert all(item.error <= 1e-12 for item in found)


def test_positives_weigh_more_above_the_target_and_entropy_moves_towards_it() -> None:
    level = float(entropy_of(table()).mean())

    def moved(target: float, **fields) -> float:
        return change(objective("entropic", {"type": "entropic_weight", "target": target, **fields}))

    assert moved(level - 0.5) < moved(level) < moved(level + 0.5)
    assert moved(level - 1.2, limit=0.5) == pytest.approx(moved(level - 0.5))


def test_the_integral_ends_what_the_proportion_leaves() -> None:
    machine, entropy, levels = objective("entropic", {"type": "entropic", "rate": 0.05}), 1.0, []
    state, knobs = machine.start(), {name: knob.value for name, knob in machine.knobs().items()}
    for _ in range(600):
        alpha = knobs["entropic_integral"] + entropy - 0.5
        entropy = max(0.0, entropy - 0.05 * alpha - 0.01)  # positives lower entropy, and it falls by itself
        levels.append(entropy)
        state, changed = machine.control(state, seen(entropy), knobs)
        knobs |= changed
    assert mean_of_last(levels) == pytest.approx(0.5, abs=0.02)


def test_raw_rewards_are_the_advantage() -> None:
    batch = hand_batch([1] * 3, [1.0, -1.0, math.nan], old_entropy=doubles(1, 1, 1))
    machine = objective("grpo", {"type": "raw_reward"})
    assert machine.prepare(batch, Step()).advantage.tolist() == [1, -1, 0]


# -- ARES -------------------------------------------------------------------------------------------------------------


def ares_by_formula(updates: list[dict[str, float]], interval: int) -> list[dict[str, float]]:
    beta, mean, error, rows = dict.fromkeys(("easy", "medium", "hard"), 1.0), {}, dict.fromkeys("emh", 0.0), []
    for number, kls in enumerate(updates, 1):
        for name, kl in kls.items():
            mean[name] = 0.03 * kl + 0.97 * mean.get(name, kl)
            off = mean[name] / 0.01 - 1
            if abs(off) >= 0.02 and number % interval == 0:
                error[name[0]] = 0.03 * off + 0.97 * error[name[0]]
                beta[name] *= math.exp(0.05 * max(-0.2, min(0.2, error[name[0]])))
        rows.append(dict(beta))
    return rows


def test_the_kl_strengths_of_ares_follow_their_formula(dice: random.Random) -> None:
    updates = [
        {name: dice.uniform(0, scale) for name, scale in (("easy", 0.5), ("medium", 0.02), ("hard", 0.005))}
        for _ in range(60)
    ]
    expected = ares_by_formula(updates, 5)
    assert len({row["hard"] for row in expected}) > 3
    shapes = [
        updates,
        {name: [row[name] for row in updates] for name in ("easy", "medium", "hard")},
        [{"difficulties": list(row), "seq_mean_kl": list(row.values())} for row in updates],
    ]
    for inputs in shapes:
        recording = Recording("ares__bucket_kl_controller", inputs, expected, {"interval": 5}, "float64")
        found = list(control_histories.ares_kl(recording))
        assert len(found) == 3
        assert all(item.error <= 1e-12 for item in found)


def test_the_turn_threshold_starts_where_it_was_measured_and_follows_slowly() -> None:
    found = course(objective("ares"), [seen(trigger_entropy=2.0), seen(trigger_entropy=1.0), seen()])
    assert [knobs["trigger_entropy"] for knobs in found] == pytest.approx([2.0, 1.99, 1.99])


def test_caps_grow_with_turns_on_easy_prompts_and_shrink_on_hard_ones_and_rest_as_released() -> None:
    more = [seen(turns_easy=5.0, turns_hard=5.0), seen(turns_easy=9.0, turns_hard=9.0)]
    described = course(objective("ares"), more)[-1]
    assert (described["ares_easy"], described["ares_hard"]) == pytest.approx((0.7, 0.3))
    released = course(objective("ares", {"type": "ares_control", "variant": "released"}), more)[-1]
    assert (released["ares_easy"], released["ares_hard"]) == (0.5, 0.5)


def test_a_controller_reads_the_metrics_of_a_recorded_history() -> None:
    history = [{"entropy": 9.0, "metrics": {"objective/sample_entropy": 0.1}}]
    batch = {"entropy": [[1.0]], "task": [0], "history": history, "knobs": {"negative_gate": 0.0}}
    assert evaluate("qwenlong-aepo", batch)["knobs"]["negative_gate"] == 1.0
