"""Each part on a case small enough to work by hand."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.errors import ConfigError
from trainer.objectives import Step
from trainer.objectives.common.kl_penalty import kl_estimate

from .batches import DOUBLE, doubles, hand_batch, objective, run

LONE = {"type": "group_norm", "std": "none"}  # groups of one: the advantage is the reward


def gradient(batch, *parts, preset="grpo", **step) -> list[float]:
    return run(objective(preset, LONE, *parts), batch, **step).grad_logprob.tolist()


def own_groups(lengths: list[int], reward: list[float], **fields):
    return hand_batch(lengths, reward, list(range(len(lengths))), **fields)


# -- aggregations: lengths 3 and 1, advantages 1 and -2 ------------------------------------------------------------

AGGREGATIONS = [
    ({"type": "token_mean"}, [-1 / 4, 2 / 4]),
    ({"type": "seq_mean_token_mean"}, [-1 / 3 / 2, 2 / 2]),
    ({"type": "seq_mean_token_sum"}, [-1 / 2, 2 / 2]),
    ({"type": "const_norm", "length": 8}, [-1 / 16, 2 / 16]),
    ({"type": "const_norm", "length": 8, "divide_by_sequences": False}, [-1 / 8, 2 / 8]),
    ({"type": "const_norm"}, [-1 / 20, 2 / 20]),  # the run's limit, 10 tokens
]


@pytest.mark.parametrize(("part", "expected"), AGGREGATIONS)
def test_denominators(part: dict, expected: list[float]) -> None:
    outcome = run(objective("grpo", LONE, part), own_groups([3, 1], [1, -2]), max_completion_tokens=10)
    assert outcome.grad_logprob.tolist() == pytest.approx([expected[0]] * 3 + [expected[1]])
    assert outcome.weight.tolist() == pytest.approx([1, 1, 1, -2])  # the denominator is not part of the weight


def test_constant_norm_without_a_limit_takes_the_longest_completion() -> None:
    assert gradient(own_groups([3, 1], [1, -2]), {"type": "const_norm"}) == pytest.approx([-1 / 6] * 3 + [2 / 6])


# -- surrogates ----------------------------------------------------------------------------------------------------


def off_policy(*ratios: float, advantage: list[float], **fields):
    logs = doubles(*ratios).log()
    return own_groups([1] * len(ratios), advantage, logprob=logs - 1, old_logprob=torch.full_like(logs, -1.0), **fields)


def test_clip_stops_only_moves_in_the_direction_of_the_advantage() -> None:
    batch = off_policy(1.25, 1.35, 0.7, 0.7, 1.5, 4.0, advantage=[1, 1, 1, -1, -1, -1])
    found = gradient(batch, {"type": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0})
    assert [-6 * value for value in found] == pytest.approx([1.25, 0, 0.7, 0, -1.5, 0])


def test_dual_clip_off_and_unclipped_ratio() -> None:
    batch = off_policy(1.35, 4.0, advantage=[1, -1])
    assert gradient(batch, {"type": "ppo_clip", "dual_clip": 0}) == pytest.approx([0, 4 / 2])
    assert gradient(batch, {"type": "importance_ratio"}) == pytest.approx([-1.35 / 2, 4 / 2])


def test_a_steered_clip_is_in_force_at_once() -> None:
    batch = off_policy(1.25, advantage=[1])
    assert gradient(batch) == [0]
    assert gradient(batch, knobs={"clip_high": 0.3}) == pytest.approx([-1.25])


def test_engine_correction_truncates_and_leaves_unknown_tokens_alone() -> None:
    engine = doubles(-1, -1 - math.log(5), -1 + math.log(2), math.nan)
    batch = own_groups([1] * 4, [1] * 4, engine_logprob=engine)
    corrected = {"type": "ppo_clip", "correction": "token", "correction_cap": 2.0}
    assert run(objective("grpo", LONE, corrected), batch).weight.tolist() == pytest.approx([1, 2, 0.5, 1])
    assert run(objective("grpo", LONE), batch).weight.tolist() == [1] * 4
    missing = batch.replace(engine_logprob=None)
    assert run(objective("grpo", LONE, corrected), missing).weight.tolist() == [1] * 4
    side = batch.replace(auxiliary=torch.tensor([False, True, True, False]))
    assert "engine_logprob" in objective("grpo", corrected).needs
    assert "engine_logprob" not in objective("grpo").needs
    prepared = side.replace(advantage=torch.ones(4, dtype=DOUBLE), mask=torch.ones(4, dtype=DOUBLE))
    assert objective("grpo", corrected).apply(prepared, Step()).weight.tolist() == pytest.approx([1] * 4)


# -- advantages ----------------------------------------------------------------------------------------------------


def advantages(batch, *parts) -> list[float]:
    prepared = objective("grpo", *parts).prepare(batch, Step())
    return [float(prepared.advantage[prepared.sequence == index][0]) for index in range(batch.sequences)]


def test_group_advantage_with_group_batch_and_no_std() -> None:
    batch = hand_batch([1] * 4, [0, 1, 3, 5], [0, 0, 1, 1])
    half = math.sqrt(0.5)
    assert advantages(batch) == pytest.approx([-half, half, -half, half], rel=1e-5)
    assert advantages(batch, LONE) == pytest.approx([-0.5, 0.5, -1, 1])
    std = torch.tensor([0.0, 1, 3, 5]).std().item()
    batch_std = {"type": "group_norm", "std": "batch"}
    assert advantages(batch, batch_std) == pytest.approx([-0.5 / std, 0.5 / std, -1 / std, 1 / std], rel=1e-5)


def test_unusable_rewards_enter_neither_mean_nor_loss() -> None:
    batch = hand_batch([1] * 4, [0, math.nan, 1, 7], valid=torch.tensor([True, True, True, False]))
    prepared = objective("grpo", LONE).prepare(batch, Step())
    assert prepared.advantage.tolist() == [-0.5, 0, 0.5, 0]
    assert prepared.mask.tolist() == [1, 0, 1, 0]
    assert run(objective("grpo", LONE), batch).grad_logprob.tolist() == pytest.approx([0.25, 0, -0.25, 0])


def test_equal_rewards_have_no_advantage_in_float32() -> None:
    batch = hand_batch([1] * 16, [0.1] * 16)
    batch = batch.replace(reward=batch.reward.float(), logprob=batch.logprob.float())
    assert not objective("grpo").prepare(batch, Step()).advantage.any()


# -- reward shapers and filters ------------------------------------------------------------------------------------


def test_soft_overlong_penalty_grows_over_the_buffer() -> None:
    batch = own_groups([7, 8, 9, 10], [1] * 4)
    shaper = {"type": "soft_overlong", "buffer": 0.2, "penalty": 1.0}
    prepared = objective("grpo", shaper, LONE).prepare(batch, Step(max_completion_tokens=10))
    assert prepared.reward.tolist() == pytest.approx([1, 1, 0.5, 0])
    assert objective("grpo", shaper, LONE).prepare(batch, Step()).reward.tolist() == [1] * 4  # no limit is known


def test_overlong_filter_leaves_the_denominator_but_not_the_group_mean() -> None:
    batch = hand_batch([1] * 3, [0, 1, 2], truncated=torch.tensor([True, False, False]))
    outcome = run(objective("grpo", LONE, {"type": "overlong_filter"}), batch)
    assert outcome.grad_logprob.tolist() == pytest.approx([0, 0, -1 / 2])


def test_zero_variance_groups_leave_the_denominator() -> None:
    batch = hand_batch([1] * 4, [1, 1, 0, 1], [0, 0, 1, 1])
    assert gradient(batch) == pytest.approx([0, 0, 0.5 / 4, -0.5 / 4])
    assert gradient(batch, {"type": "zero_variance_filter"}) == pytest.approx([0, 0, 0.5 / 2, -0.5 / 2])


# -- entropy methods -----------------------------------------------------------------------------------------------


def test_top_entropy_detach_keeps_the_denominator_and_drop_does_not() -> None:
    batch = own_groups([1] * 5, [1] * 5, entropy=doubles(0.1, 0.5, 0.3, 0.9, 0.2))
    assert gradient(batch, {"type": "top_entropy", "share": 0.4}) == pytest.approx([0, -1 / 5, 0, -1 / 5, 0])
    dropped = {"type": "top_entropy", "share": 0.4, "removal": "drop", "select": "count"}
    assert gradient(batch, dropped) == pytest.approx([0, -1 / 2, 0, -1 / 2, 0])
    with pytest.raises(ConfigError, match="entropy is missing"):
        gradient(batch.replace(entropy=None), dropped)


def test_top_entropy_by_completion() -> None:
    batch = own_groups([2, 3], [1, 1], entropy=doubles(1.0, 2.0, 0.1, 0.3, 0.2))
    part = {"type": "top_entropy", "share": 0.2, "scope": "completion", "strict": True}
    outcome = run(objective("grpo", LONE, part), batch)
    assert outcome.mask.tolist() == [0, 1, 0, 1, 0]


def test_clip_cov_takes_the_gradient_of_the_largest_covariance() -> None:
    batch = own_groups([1] * 4, [2, -2, 0, 0], logprob=doubles(-0.1, -2, -1, -1))
    # means 0 and -1.025: covariances 1.85, 1.95, 0, 0
    part = {"type": "clip_cov", "share": 0.25, "lower": 1.9, "upper": 5.0}
    outcome = run(objective("clip-cov", LONE, part), batch)
    assert outcome.mask.tolist() == [1, 0, 1, 1]
    assert outcome.grad_logprob.tolist() == pytest.approx([-2 / 4, 0, 0, 0])


def test_clip_cov_draws_its_share_and_repeats_it() -> None:
    sign = doubles(*[1, -1] * 100)  # likely tokens rewarded, unlikely ones punished: all covariances above 0.25
    batch = own_groups([1] * 200, sign.tolist(), logprob=-2 + sign * (torch.rand(200, dtype=DOUBLE) + 0.5))
    machine = objective("clip-cov", LONE, {"type": "clip_cov", "share": 0.1, "lower": 0.1})
    first, again, other = (run(machine, batch, seed=seed, step=3).mask for seed in (1, 1, 2))
    assert int((first == 0).sum()) == 20
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_kl_cov_pays_on_the_largest_covariance_only() -> None:
    batch = own_groups(
        [1] * 4, [2, -2, 0, 0], logprob=doubles(-0.1, -2, -1, -1), old_logprob=doubles(-0.2, -2.1, -1, -1)
    )
    found = gradient(batch, {"type": "kl_cov", "share": 0.25, "coefficient": 0.5}, preset="kl-cov")
    ratio = math.exp(0.1)
    assert found == pytest.approx([-2 * ratio / 4, (2 * ratio + 0.5) / 4, 0, 0])


def test_kl_cov_has_no_gradient_in_the_first_update() -> None:
    batch = own_groups([1] * 4, [2, -2, 0, 0], logprob=doubles(-0.1, -2, -1, -1))
    found = gradient(batch, {"type": "kl_cov", "share": 1.0, "coefficient": 9.0}, preset="kl-cov")
    assert found == pytest.approx([-0.5, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [
        ("k1", 0.5, 1.0),
        ("abs", 0.5, 1.0),
        ("k2", 0.125, 0.5),
        ("k3", math.exp(-0.5) - 0.5, 1 - math.exp(-0.5)),
    ],
)
def test_kl_estimators(estimator: str, value: float, slope: float) -> None:
    logprob = doubles(-1.0).requires_grad_()
    found = kl_estimate(logprob, doubles(-1.5), estimator)
    assert found.item() == pytest.approx(value)
    assert torch.autograd.grad(found.sum(), logprob)[0].item() == pytest.approx(slope)


def test_kl_penalty_wants_its_reference() -> None:
    batch = own_groups([1], [1], ref_logprob=doubles(-1.5))
    part = {"type": "kl_penalty", "estimator": "k1", "coefficient": 0.1}
    assert gradient(batch, part) == pytest.approx([-1 + 0.1])
    with pytest.raises(ConfigError, match="ref_logprob is missing"):
        gradient(batch.replace(ref_logprob=None), part)


def test_entropy_bonus_is_a_token_mean_and_nothing_at_zero() -> None:
    batch = own_groups([3, 1], [0, 0], entropy=doubles(1, 2, 3, 4))
    outcome = run(objective("entropy-bonus", {"type": "entropy_bonus", "coefficient": 0.2}), batch)
    assert outcome.grad_entropy.tolist() == pytest.approx([-0.05] * 4)
    assert float(outcome.loss) == pytest.approx(-0.2 * 2.5)
    off = run(objective("entropy-bonus"), batch, knobs={"entropy_coefficient": 0.0})
    assert off.grad_entropy is None
    resting = run(objective("skywork-adaptive"), batch, knobs={"entropy_coefficient": 0.1})
    assert resting.grad_entropy is None  # disabled until entropy was seen below the floor


# -- Entrocraft ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entropy", "kept"), [(0.9, [0, 1, 1]), (0.65, [1, 1, 1]), (0.3, [1, 1, 0])])
def test_entrocraft_accepts_by_the_side_of_the_band(entropy: float, kept: list[int]) -> None:
    batch = hand_batch([1] * 3, [0, 1, 2], old_entropy=doubles(*[entropy] * 3))
    prepared = objective("entrocraft").prepare(batch, Step(step=0, total_steps=100))
    assert prepared.mask.tolist() == kept
    assert prepared.advantage.tolist() == pytest.approx([-1, 0, 1], rel=1e-5)


def test_entrocraft_follows_its_course_until_it_is_steered() -> None:
    cosine = objective("entrocraft", {"type": "entrocraft", "schedule": "cosine"})
    assert cosine.target(50, 100, {}) == pytest.approx((0.5, 0.6))
    assert cosine.target(100, 100, {}) == pytest.approx((0.4, 0.5))
    assert cosine.target(50, 100, {"entropy_low": 0.1, "entropy_high": 0.7}) == pytest.approx((0.1, 0.6))
    points = {"type": "entrocraft", "schedule": "drawn", "points": [[0.0, 1.0], [0.5, 0.4]], "width": 0.2}
    assert objective("entrocraft", points).target(25, 100, {}) == pytest.approx((0.6, 0.8))
    assert objective("entrocraft", points).target(99, 100, {}) == pytest.approx((0.3, 0.5))


# -- side batches --------------------------------------------------------------------------------------------------

SIDE = torch.tensor([False, False, False, False, True, True, True, True])


def side_batch():
    return hand_batch([1] * 8, [0, 1, 0, 1, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0, 0, 0], auxiliary=SIDE)


def test_aepo_replaces_the_first_rows_with_right_side_answers() -> None:
    machine = objective("aepo", LONE)
    prepared = machine.prepare(side_batch(), Step(knobs={"auxiliary_temperature": 1.2}))
    assert prepared.mask.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert prepared.advantage.tolist() == [-0.5, 0.5, -0.5, 0.5, -0.5, -0.5, 1, 1]
    few = objective("aepo", LONE, {"type": "aepo_sampling", "replace_rows": 2})
    cooling = few.prepare(side_batch(), Step(knobs={"auxiliary_temperature": 0.8}))
    assert cooling.mask.tolist() == [0, 1, 1, 1, 0, 0, 1, 0]  # half as many while cooling


def test_aepo_without_a_right_side_answer_falls_back_to_the_main_batch() -> None:
    batch = side_batch()
    batch = batch.replace(reward=batch.reward * ~SIDE)
    assert objective("aepo").prepare(batch, Step()).mask.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_aepo_plan_and_temperature_switch() -> None:
    from trainer.objectives import Observation

    machine = objective("aepo")
    plan = machine.auxiliary(Step())
    assert (plan.prompt_share, plan.temperature) == (0.25, 1.2)
    for rule, entropy, expected in (
        ("switch", 0.5, 1.2),
        ("switch", 0.51, 0.8),
        ("proportional", 0.4, 1.1),
        ("proportional", 3.0, 0.8),
    ):
        machine = objective("aepo", {"type": "auxiliary_temperature", "rule": rule, "first": 1.0})
        seen = Observation(step=0, total_steps=9, entropy=0.0, entropy_sampled=entropy, reward=0.0)
        _, knobs = machine.control(machine.start(), seen, {})
        assert knobs["auxiliary_temperature"] == pytest.approx(expected)
    assert objective("grpo").auxiliary(Step()) is None


def test_scope_adds_a_clipped_likelihood_of_right_side_answers() -> None:
    batch = side_batch()
    old = batch.logprob.clone()
    old[7] -= 1.0  # ratio e: clipped
    outcome = run(objective("scope-rl", LONE), batch.replace(old_logprob=old))
    assert outcome.grad_logprob[:4].tolist() == pytest.approx([0.5 / 4, -0.5 / 4, 0.5 / 4, -0.5 / 4])
    assert outcome.grad_logprob[4:].tolist() == pytest.approx([0, 0, -1 / 64 / 4, 0])
