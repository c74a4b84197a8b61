"""Token selection and distribution by hand: what is kept, what the terms cost, how state moves, what is refused."""

from __future__ import annotations

import math
import secrets

import pytest
import torch

from trainer.batch import TokenBatch
from trainer.config import load
from trainer.errors import ConfigError
from trainer.objectives import Observation, Outcome, Step, evaluate
from trainer.objectives.selection.epo import EPOPhases, phase_weight
from trainer.objectives.selection.lp_reg import least

from .batches import DOUBLE, doubles, hand_batch, objective, run
from .test_signs import entropy_of, sampled, table


def tokens(count: int = 4, **fields) -> TokenBatch:
    """Return one completion; advantages of zero unless given, so that only added terms are left."""
    fields.setdefault("advantage", torch.zeros(count, dtype=DOUBLE))
    return hand_batch([count], [1.0], **fields)


def seen(entropy: float = 1.0, step: int = 1, **metrics: float) -> Observation:
    named = {f"objective/{name}": value for name, value in metrics.items()}
    return Observation(step, 10, entropy, entropy, reward=0.0, metrics=named)


def entropy_step(outcome: Outcome, batch: TokenBatch, logits: torch.Tensor, choices: torch.Tensor) -> float:
    """Return how far the mean entropy of a table moves in one small step, per unit of rate."""
    rate, logits = 1e-3, logits.clone().requires_grad_()
    value = (logits.log_softmax(-1)[batch.group, choices] * outcome.grad_logprob).sum()
    if outcome.grad_entropy is not None:
        value = value + (entropy_of(logits)[batch.group] * outcome.grad_entropy).sum()
    (slope,) = torch.autograd.grad(value, logits)
    moved = logits.detach() - rate * slope
    return float((entropy_of(moved) - entropy_of(logits.detach())).mean() / rate)


# -- 80/20 ----------------------------------------------------------------------------------------------------------

ENTROPY = doubles(0.1, 0.2, 0.3, 0.4, 0.5, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("preset", "kept", "denominator"),
    [("top-entropy-mask", [8, 9], 10), ("top-entropy-count", [8, 9], 2), ("top-entropy-by-completion", [4, 9], 2)],
)
def test_three_forms_of_80_20_keep_other_tokens_and_divide_by_others(
    preset: str, kept: list[int], denominator: int
) -> None:
    batch = hand_batch([5, 5], [1, 1], entropy=ENTROPY, advantage=torch.ones(10, dtype=DOUBLE))
    found = run(objective(preset), batch)
    assert found.mask.nonzero().squeeze(1).tolist() == kept
    torch.testing.assert_close(found.grad_logprob[kept], torch.full((2,), -1 / denominator, dtype=DOUBLE))


# -- SPINE ----------------------------------------------------------------------------------------------------------


def test_the_band_pulls_forks_towards_their_own_quantiles() -> None:
    part = {"type": "entropy_band", "low": 0.25, "high": 0.5, "price_low": 0.3, "price_high": 0.2}
    batch = tokens(5, entropy=doubles(1, 2, 3, 4, 5))
    machine = objective("grpo", part)
    found = machine.apply(machine.prepare(batch, Step()), Step())  # the band is [2, 3]
    torch.testing.assert_close(found.grad_entropy, doubles(-0.3, 0, 0, 0.2, 0.2) / 5)
    assert float(found.loss) == pytest.approx((0.3 * 1 + 0.2 * (1 + 2)) / 5)


def test_spine_trains_on_the_forks_of_the_majoritys_answer() -> None:
    entropy = torch.arange(20, dtype=DOUBLE) % 5
    batch = hand_batch(
        [5] * 4,
        [0, 0, 0, 0],
        entropy=entropy,
        ref_logprob=torch.full((20,), -1.0, dtype=DOUBLE),
        extra={"answer": doubles(0, 0, 0, 1)},
    )
    found = run(objective("spine"), batch)
    assert found.mask.nonzero().squeeze(1).tolist() == [4, 9, 14, 19]  # one fork of five tokens each
    assert found.advantage[0] > 0 > found.advantage[19]
    assert found.grad_entropy is None  # one fork is its own quantile


def test_a_band_upside_down_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low is 0\.9"):
        objective("spine", {"type": "entropy_band", "low": 0.9})


# -- attention ------------------------------------------------------------------------------------------------------


def test_anchors_weigh_more_first_and_explorers_last() -> None:
    wide = {"attention_entropy": doubles(0.3, 0.1, 0.9, 0.2)}
    batch = hand_batch([3, 1], [1, 1], advantage=torch.ones(4, dtype=DOUBLE), extra=wide)
    machine = objective("attention-anchors")
    weights = [run(machine, batch, step=step, total_steps=10).weight for step in (0, 5, 10)]
    torch.testing.assert_close(weights[0], doubles(1, 1.2, 0.8, 1))
    torch.testing.assert_close(weights[1], torch.ones(4, dtype=DOUBLE))
    torch.testing.assert_close(weights[2], doubles(1, 0.8, 1.2, 1))


@pytest.mark.parametrize(("preset", "lacking"), [("attention-anchors", "attention rows"), ("trace", "second pass")])
def test_what_the_trainer_cannot_give_is_refused_with_the_reason(preset: str, lacking: str) -> None:
    with pytest.raises(ConfigError, match=lacking):
        load({"objective": {"preset": preset}})


@pytest.mark.parametrize("preset", ["spine", "lp-reg", "dcpo", "siren", "epo", "light-if", "top-entropy-count"])
def test_the_others_can_run(preset: str) -> None:
    assert load({"objective": {"preset": preset}}).objective.preset == preset


# -- Lp-Reg ---------------------------------------------------------------------------------------------------------


def test_lp_reg_holds_rare_plausible_tokens_of_wrong_answers() -> None:
    # two of the four punished tokens are looked at: the first is plausible (its filtered log-prob is higher), the
    # second is noise; the other two are too likely
    batch = tokens(
        advantage=doubles(-1, -1, -1, -1),
        logprob=doubles(-5, -6, -1, -2),
        extra={"kept_logprob": doubles(-4.5, -1e4, -0.5, -1.5)},
    )
    found = run(objective("lp-reg", {"type": "low_probability", "share_negative": 0.5}), batch)
    pull = 1 - math.exp(0.5)  # derivative of exp(d) - d - 1 at d = target - log-prob
    torch.testing.assert_close(found.grad_logprob, doubles(1 + pull, 1, 1, 1) / 4)
    assert found.metrics["objective/low_probability_share"] == 0.25


def test_lp_reg_frees_the_chosen_token_of_the_clip() -> None:
    batch = tokens(
        2, advantage=doubles(-1, -1), logprob=doubles(-6, -7), old_logprob=doubles(-5, -5),
        extra={"kept_logprob": doubles(-4, -1e4)},
    )  # fmt: skip
    clip = {"type": "ppo_clip", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 0.0}
    parts = [clip, {"type": "low_probability", "share_negative": 1.0, "coefficient": 0.0}]
    found = run(objective("lp-reg", *parts), batch)
    torch.testing.assert_close(found.weight, doubles(-math.exp(-1), 0))  # the second one is noise and stays clipped


def test_one_token_is_no_selection() -> None:
    assert not least(doubles(-3, -2, -1), torch.tensor([True, True, True]), 0.5).any()
    assert least(doubles(-3, -2, -3, -1), torch.ones(4, dtype=torch.bool), 0.5).tolist() == [True, False, True, False]


# -- DCPO -----------------------------------------------------------------------------------------------------------


def tempered(logits: torch.Tensor, temperature: float) -> tuple[torch.Tensor, TokenBatch]:
    choices, batch = sampled(logits)
    known = (logits / temperature).log_softmax(-1)[batch.group, choices]
    return choices, batch.replace(extra={"tempered_logprob": known}, advantage=torch.zeros_like(known))


def test_dcpo_by_hand() -> None:
    batch = hand_batch(
        [1, 1], [1, 0], advantage=doubles(2, -2), extra={"tempered_logprob": doubles(-1 + math.log(3), -7)}
    )
    knobs = {"entropy_gap": 0.05, "second_temperature": 1.2}
    found = run(objective("dcpo"), batch, knobs=knobs)  # a0 = 0.05 / 0.5, alpha = 1 / 11
    torch.testing.assert_close(found.weight, doubles((20 + 3) / 11, -20 / 11))
    torch.testing.assert_close(run(objective("dcpo"), batch).weight, doubles(2, -2))  # nothing was measured yet
    wrong = batch.replace(reward=doubles(0, 0))
    torch.testing.assert_close(run(objective("dcpo"), wrong, knobs=knobs).weight, doubles(2, -2))


@pytest.mark.parametrize(("temperature", "sign"), [(1.2, 1), (0.8, -1)])
def test_a_hot_second_temperature_raises_entropy_and_a_cold_one_lowers_it(temperature: float, sign: int) -> None:
    logits = table()
    choices, batch = tempered(logits, temperature)
    batch = batch.replace(reward=torch.ones_like(batch.reward))  # all right: what is left is the pull itself
    # the ratio's mean under the policy is 1 everywhere; take it off, as a baseline would
    found = run(objective("dcpo"), batch, knobs={"entropy_gap": 0.1, "second_temperature": temperature})
    weight = found.metrics["objective/tempered_share"] / batch.tokens
    centred = Outcome(**{**vars(found), "grad_logprob": found.grad_logprob + weight})
    assert sign * entropy_step(centred, batch, logits, choices) > 0


def test_the_second_temperature_follows_the_entropy() -> None:
    machine = objective("dcpo")
    assert machine.options() == {"second_temperature": 1.2}
    _, low = machine.control(machine.start(), seen(0.47), {})
    assert low == {"entropy_gap": pytest.approx(0.03)}  # hot it is already
    _, high = machine.control(machine.start(), seen(0.7), {})
    assert high == {"second_temperature": 0.8, "entropy_gap": pytest.approx(0.2)}
    assert machine.options(high) == {"second_temperature": 0.8}


# -- SIREN ----------------------------------------------------------------------------------------------------------


def peaks(**step) -> Outcome:
    """Return the outcome for two completions whose peaks have nucleus entropies 4 and 2."""
    extra = {"nucleus_entropy": doubles(1, 1, 1, 4, 0, 2, 0)}
    return run(
        objective("siren"), hand_batch([4, 3], [0, 0], advantage=torch.zeros(7, dtype=DOUBLE), extra=extra), **step
    )


def test_peaks_are_pulled_to_the_anchor() -> None:
    found = peaks(knobs={"peak_anchor": 2.5, "peak_coefficient": 0.1})
    assert float(found.loss) == pytest.approx(0.1 * 0.5**2)
    # 2 c (3 - 2.5) / 2 completions, at the peaks alone
    torch.testing.assert_close(found.grad_extra["nucleus_entropy"], doubles(0, 0, 0, 0.05, 0, 0.05, 0))
    above = peaks(knobs={"peak_anchor": 3.5, "peak_coefficient": 0.1}).grad_extra["nucleus_entropy"]
    assert float(above[3]) < 0  # below the anchor entropy is pulled up


def test_the_policy_is_its_own_anchor() -> None:
    machine, first = objective("siren"), peaks()
    assert not first.grad_extra
    observed = Observation(1, 10, 1.0, 1.0, reward=0.0, metrics=first.metrics)
    _, moved = machine.control(machine.start(), observed, {})
    assert moved == {"peak_anchor": 3.0}
    assert (
        machine.control({}, Observation(2, 10, 1.0, 1.0, 0.0, metrics={"objective/peak_entropy_start": 9.0}), moved)[1]
        == {}
    )


def test_a_flat_answer_has_no_peak() -> None:
    flat = hand_batch([3], [0], advantage=torch.zeros(3, dtype=DOUBLE), extra={"nucleus_entropy": doubles(1, 1, 1)})
    assert float(run(objective("siren"), flat, knobs={"peak_anchor": 1.0}).loss) == 0


# -- TRACE ----------------------------------------------------------------------------------------------------------

SPANS = {"span": doubles(1, 0, -1, 0), "teacher_kl": doubles(2, 2, 2, 2), "teacher_reverse_kl": doubles(3, 3, 3, 3)}


def test_key_spans_learn_from_the_teacher_until_it_fades() -> None:
    batch, machine = tokens(advantage=doubles(1, 1, -1, -1), extra=SPANS), objective("trace")
    for step, price in ((0, 1.0), (10, 1.0), (55, 0.5)):
        found = run(machine, batch, step=step, total_steps=100)
        torch.testing.assert_close(found.weight, doubles(0, 1, -1, -1))
        torch.testing.assert_close(found.grad_extra["teacher_kl"], doubles(price, 0, 0, 0) / 4)
    done = run(machine, batch, step=100, total_steps=100)
    torch.testing.assert_close(done.weight, doubles(1, 1, -1, -1))
    assert not done.grad_extra


def test_error_spans_take_the_reverse_divergence_on_request() -> None:
    batch = tokens(advantage=doubles(1, 1, -1, -1), extra=SPANS)
    found = run(objective("trace", {"type": "token_routing", "errors": True}), batch, total_steps=100)
    torch.testing.assert_close(found.weight, doubles(0, 1, 0, -1))
    torch.testing.assert_close(found.grad_extra["teacher_reverse_kl"], doubles(0, 0, 1, 0) / 4)


# -- EPO ------------------------------------------------------------------------------------------------------------


def smoothed(**settings) -> dict:
    """Return what EPO makes of two turns with earlier means of 1 and 2, the range 0.5 to 1.5 times that."""
    part = {"type": "entropy_smoothing", "low": 0.5, "high": 1.5, "coefficient": 0.1, "price": 0.2, **settings}
    batch = {
        "entropy": [[0.25, 1.0, 2.0], [4.0, 2.0]],
        "advantages": [[0.0] * 3, [0.0] * 2],
        "turn": [0, 1],
        "history": [{"entropy": 1.0, "metrics": {"objective/turn_entropy_0": 1.0, "objective/turn_entropy_1": 2.0}}],
    }
    return evaluate({"preset": "epo", "parts": [part, {"type": "epo_phases", "fading": False}]}, batch)


def test_smoothing_pays_by_the_distance_to_the_turns_range() -> None:
    found = smoothed()
    # outside: 0.25 below 0.5, 2 above 1.5, 4 above 3; the slope of the price changes the bonus there by a fifth
    assert found["grad_entropy"] == [pytest.approx([-0.024, -0.02, -0.016]), pytest.approx([-0.016, -0.02])]
    assert found["loss"] == pytest.approx(-0.1 * (9.25 - 0.2 * (0.25 + 0.5 + 1.0)) / 5)
    assert found["metrics"]["objective/turn_entropy_1"] == 3.0


def test_the_released_price_has_no_slope() -> None:
    found = smoothed(variant="released")
    assert found["grad_entropy"] == [pytest.approx([-0.02] * 3), pytest.approx([-0.02] * 2)]
    assert found["loss"] == pytest.approx(-0.1 * (9.25 - 0.2 * 3) / 5)


def test_completions_may_be_compared_as_a_whole() -> None:
    found = smoothed(mode="completion", high=1.4)  # means 13/12 and 3: the second is above 2.8
    assert found["loss"] == pytest.approx(-0.1 * (9.25 - 0.2 * 2 * 0.2) / 5)


def test_smoothing_can_wait_for_long_trajectories() -> None:
    assert smoothed(from_turn=2)["loss"] == pytest.approx(-0.1 * 9.25 / 5)


def test_each_turns_history_is_the_mean_of_the_steps_that_had_it() -> None:
    part = EPOPhases()
    state, knobs = part.update(part.initial_state(), seen(step=1, turn_entropy_0=1.0), {})
    state, _ = part.update(state, seen(step=2, turn_entropy_0=3.0, turn_entropy_2=5.0), {})
    assert state["mean"] == [2.0, None, 5.0]
    assert knobs == {"smoothing_weight": phase_weight(1, 150)}


def test_the_price_fades_in_two_phases() -> None:
    weights = [phase_weight(step, 150) for step in range(300)]
    assert weights[0] == 1.0
    assert weights == sorted(weights, reverse=True)
    assert weights[74] == pytest.approx(0.83, abs=0.005)
    assert weights[75] == 0.8
    assert weights[150] == weights[299] == pytest.approx(0.8 * math.exp(-3))


# -- Light-IF -------------------------------------------------------------------------------------------------------


def test_the_bonus_goes_where_advantage_and_log_prob_vary_together() -> None:
    # covariances 1, -1, -1, 1 around the means 0 and -2
    batch = tokens(
        advantage=doubles(1, 1, -1, -1), logprob=doubles(-1, -3, -1, -3), entropy=torch.ones(4, dtype=DOUBLE)
    )
    found = run(objective("light-if"), batch)
    high, low = math.e / (2 * math.e + 2 / math.e), (1 / math.e) / (2 * math.e + 2 / math.e)
    torch.testing.assert_close(found.grad_entropy, -0.05 * doubles(high, low, low, high))
    torch.testing.assert_close(found.weight, batch.need("advantage"))  # the weights are constants
    capped = run(objective("light-if", {"type": "covariance_bonus", "cap": 0.5}), batch)
    torch.testing.assert_close(capped.grad_entropy, -0.05 * doubles(0.5, 4 * low, 4 * low, 0.5) / 4)


def test_released_weights_carry_a_gradient_of_their_own() -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    dice = torch.Generator().manual_seed(seed)
    fields = {name: torch.rand(6, generator=dice, dtype=DOUBLE) for name in ("entropy", "advantage")}
    batch = hand_batch([4, 2], [0, 0], logprob=-torch.rand(6, generator=dice, dtype=DOUBLE), **fields)
    described, released = (
        run(objective("light-if", {"type": "covariance_bonus", "variant": name}), batch).weight
        for name in ("described", "released")
    )
    torch.testing.assert_close(described, fields["advantage"])
    assert not torch.allclose(released, described)


def test_the_bonus_raises_entropy() -> None:
    logits = table()
    choices, batch = sampled(logits)
    plain, bonus = (run(objective(name), batch) for name in ("grpo", "light-if"))
    assert entropy_step(bonus, batch, logits, choices) > entropy_step(plain, batch, logits, choices)
