"""Reward methods on groups small enough to work by hand, and the way they move entropy."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from pydantic import ValidationError

from trainer.batch import TokenBatch
from trainer.config import RunConfig
from trainer.objectives import Step, evaluate
from trainer.objectives.reductions import group_rank
from trainer.objectives.rewards.ares import level_of, window_mean
from trainer.objectives.rewards.draws import draws
from trainer.objectives.rewards.vote import majority, votes

from .batches import DOUBLE, doubles, hand_batch, objective, random_batch, run
from .test_invariance import batches, permuted
from .test_signs import change, entropy_of, sampled, table


def answers(*numbers: float, group: list[int] | None = None, **fields) -> TokenBatch:
    """Return completions of one token with these answers, reward 0.3 each."""
    extra = {"answer": doubles(*numbers), "trajectory": torch.arange(len(numbers)).double(), **fields.pop("extra", {})}
    return hand_batch([1] * len(numbers), [0.3] * len(numbers), group, extra=extra, **fields)


def shaped(preset: str, batch: TokenBatch, *parts: dict, **step) -> list[float]:
    """Return the rewards after shaping."""
    return objective(preset, *parts).prepare(batch, Step(**step)).reward.tolist()


# -- votes ----------------------------------------------------------------------------------------------------------


def test_votes_are_counted_within_the_group_and_silence_is_one_answer() -> None:
    batch = answers(0, 0, -1, -1, 0, 1, group=[0, 0, 0, 0, 1, 1])
    assert votes(batch.extra["answer"], batch).tolist() == [2, 2, 2, 2, 1, 1]


def test_the_majority_knows_no_silence_and_the_first_answer_wins_a_tie() -> None:
    batch = answers(-1, -1, -1, 2, 1, 1, 0, 0, -1, -1, group=[0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    assert majority(batch.extra["answer"], batch).tolist() == [False] * 3 + [
        True,
        False,
        False,
        True,
        True,
        False,
        False,
    ]


def test_an_ungraded_completion_has_no_vote() -> None:
    batch = answers(1, 1, 0, valid=torch.tensor([True, False, True]))
    assert majority(batch.extra["answer"], batch).tolist() == [False, False, True]


def test_empo_rewards_agreement_by_kind() -> None:
    group = answers(0, 0, 1, -1)
    assert shaped("empo", group) == [0.5, 0.5, 0.25, 0]
    assert shaped("empo", group, {"type": "empo", "kind": "voting"}) == [1, 1, 0, 0]
    free = answers(0, 0, 1, -1, extra={"copied": doubles(1, 0, 0, 0)})
    assert shaped("empo", free, {"type": "empo", "kind": "free_form"}) == [0, 0.5, 0.25, -0.5]
    scattered = answers(*range(6), extra={"copied": torch.zeros(6, dtype=DOUBLE)})
    assert shaped("empo", scattered, {"type": "empo", "kind": "free_form"}) == [0] * 6
    lone = answers(0, extra={"copied": doubles(0)})
    assert shaped("empo", lone, {"type": "empo", "kind": "free_form"}) == [1]


@pytest.mark.parametrize(("size", "missed"), [(3, True), (4, False), (6, True), (7, True), (8, False), (14, True)])
def test_empo_of_different_answers_rewards_nobody_and_the_release_forgets_it_without_harm(
    size: int, missed: bool
) -> None:
    group = answers(*range(size))
    assert shaped("empo", group) == [0.0] * size
    released = {"type": "empo", "variant": "released"}
    assert shaped("empo", group, released) == [pytest.approx(1 / size) if missed else 0.0] * size
    assert not run(objective("empo", released), group).grad_logprob.any()


def test_ttrl_rewards_the_majority_and_learns_from_half_of_the_votes() -> None:
    batch = answers(*[0, 0, 0, 1] * 2, group=[0] * 4 + [1] * 4, ref_logprob=torch.full((8,), -1.0, dtype=DOUBLE))
    machine = objective("ttrl")
    prepared = machine.prepare(batch, Step(seed=3))
    assert prepared.reward.tolist() == [1, 1, 1, 0] * 2
    assert prepared.mask.view(2, 4).sum(1).tolist() == [2, 2]
    assert prepared.advantage[:4].tolist() == pytest.approx([0.5, 0.5, 0.5, -1.5], rel=1e-5)  # of all four votes
    assert machine.prepare(batch, Step(seed=3)).mask.equal(prepared.mask)
    drawn = {tuple(machine.prepare(batch, Step(seed=seed)).mask.tolist()) for seed in range(20)}
    assert len(drawn) > 5
    first = objective("ttrl", {"type": "sub_sample", "choose": "first"}).prepare(batch, Step()).mask
    assert first.tolist() == [1, 1, 0, 0] * 2


@pytest.mark.parametrize("preset", ["empo", "ttrl"])
def test_agreeing_with_oneself_costs_entropy(preset: str) -> None:
    logits = table().requires_grad_()
    choices, batch = sampled(logits.detach())
    extra = {"answer": choices.to(DOUBLE), "trajectory": torch.arange(batch.sequences)}
    outcome = run(objective(preset), batch.replace(extra=extra, ref_logprob=batch.logprob))
    surrogate = (logits.log_softmax(-1)[batch.group, choices] * outcome.grad_logprob).sum()
    (slope,) = torch.autograd.grad(surrogate, logits)
    moved = logits.detach() - 1e-2 * slope
    assert entropy_of(moved).mean() < entropy_of(logits.detach()).mean()


def test_two_rewards_in_place_of_the_tasks_are_refused() -> None:
    with pytest.raises(ValidationError, match="does not work together with"):
        objective("empo", {"type": "majority_vote"})


def test_a_share_of_nearly_nothing_keeps_one_completion_of_each_group() -> None:
    batch = answers(0, 0, 0, 0, 1, group=[0, 0, 0, 1, 1], ref_logprob=torch.full((5,), -1.0, dtype=DOUBLE))
    mask = objective("ttrl", {"type": "sub_sample", "share": 0.01}).prepare(batch, Step()).mask
    assert (mask[:3].sum(), mask[3:].sum()) == (1, 1)


def test_draws_are_uniform_and_belong_to_seed_step_and_trajectory() -> None:
    who = torch.arange(20_000)
    found = draws(Step(seed=1, step=2), who, purpose=0)
    assert float(found.min()) >= 0
    assert float(found.max()) < 1
    assert float(found.mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.histc(found, 10, 0, 1).tolist() == pytest.approx([2000] * 10, rel=0.1)
    assert draws(Step(seed=1, step=2), who.flip(0), purpose=0).flip(0).equal(found)
    for other in (draws(Step(seed=2, step=2), who, 0), draws(Step(seed=1, step=3), who, 0), draws(Step(1), who, 1)):
        assert abs(float(torch.corrcoef(torch.stack([found, other]))[0, 1])) < 0.05


def test_spurious_rewards_know_nothing_of_the_task() -> None:
    batch = answers(0, -1, 1, 1, extra={"correct": doubles(1, 0, 0, 1)})
    rule = "spurious_reward"
    assert shaped("random-reward", batch, {"type": rule, "rule": "answered"}) == [1, 0, 1, 1]
    assert shaped("random-reward", batch, {"type": rule, "rule": "wrong"}) == [0, 0, 1, 0]
    assert shaped("random-reward", batch, {"type": rule, "chance": 1.0}) == [1] * 4
    assert shaped("random-reward", batch, {"type": rule, "chance": 0.0}) == [0] * 4
    coins = [shaped("random-reward", batch, seed=seed) for seed in range(50)]
    assert coins == [shaped("random-reward", batch.replace(reward=batch.reward + 5), seed=seed) for seed in range(50)]
    assert sum(map(sum, coins)) / 200 == pytest.approx(0.5, abs=0.15)


def test_evol_puts_the_majority_above_and_the_novel_first_in_each_class() -> None:
    near, off, far = [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]
    batch = answers(
        0, 0, 0, 1, -1, extra={"embedding": torch.tensor([near, near, off, far, far], dtype=DOUBLE)}
    )  # the silent one counts as a likeness, never as novel
    found = shaped("evol-rl", with_reference(batch))
    # likeness to kin and at most: near 0.5 (1 + s) / 2 + 0.5, off 0.5 s + 0.5 s with s = cos 45 degrees
    assert found[:3] == pytest.approx([0.5, 0.5, 1.0])
    assert found[3] == -0.75  # two wrong ones, equally novel: the middle of the range
    assert found[4] == -1.0


def test_evol_with_a_lone_right_answer_and_the_task_as_judge() -> None:
    vectors = torch.eye(3, dtype=DOUBLE)
    batch = answers(0, 1, 2, extra={"embedding": vectors, "correct": doubles(0, 1, 0)})
    found = shaped("evol-rl", with_reference(batch), {"type": "evol_rl", "label": "correct"})
    assert found == [-0.75, 1.0, -0.75]


def with_reference(batch: TokenBatch) -> TokenBatch:
    return batch.replace(ref_logprob=batch.logprob, entropy=torch.ones_like(batch.logprob))


# -- entropy in the reward --------------------------------------------------------------------------------------------


def test_pear_takes_the_surplus_of_the_thinking_from_right_answers_only() -> None:
    batch = hand_batch(
        [4, 4, 2],
        [1.0, 0.2, 1.0],
        old_entropy=doubles(1.0, 2.0, 9.0, 0.5, 1.0, 2.0, 9.0, 0.5, 0.4, 0.2),
        extra={"think_end": doubles(2, 2, -1), "correct": doubles(1, 0, 1)},
    )
    assert shaped("pear", batch) == pytest.approx([0.0, 0.2, 0.7])  # 1.5 - 0.5; the delimiter's 9 counts nowhere
    assert shaped("pear", batch, {"type": "pear", "alpha": 9.0}) == pytest.approx([1.0, 0.2, 0.7])


def test_confidence_is_minus_entropy_or_the_log_prob_and_silence_costs() -> None:
    batch = hand_batch(
        [2, 2],
        [1.0, 0.0],
        old_entropy=doubles(1.0, 2.0, 0.5, 0.1),
        logprob=doubles(-1.0, -2.0, -3.0, -4.0),
        ref_logprob=doubles(-1.0, -2.0, -3.0, -4.0),
        extra={"answer": doubles(0, -1)},
    )
    assert shaped("rent", batch) == [-1.5, -7.0]
    assert shaped("em-rl", batch) == pytest.approx([-3.0, -0.6])
    assert shaped("em-rl", batch, {"type": "confidence_reward", "measure": "logprob"}) == [-3.0, -7.0]
    weight = run(objective("em-rl"), batch).weight
    assert (weight[:2] < 0).all()  # the less certain completion is made less likely
    assert (weight[2:] > 0).all()


def test_em_ft_lowers_entropy_at_half_the_temperature_and_nothing_else_counts() -> None:
    logits = table().requires_grad_()
    _, batch = sampled(logits.detach())
    batch = batch.replace(extra={"tempered_entropy": entropy_of(logits.detach() / 0.5)[batch.group]})
    outcome = run(objective("em-ft"), batch)
    assert not outcome.grad_logprob.any()
    assert not outcome.weight.any()
    gradient = outcome.grad_extra["tempered_entropy"]
    (slope,) = torch.autograd.grad((entropy_of(logits / 0.5)[batch.group] * gradient).sum(), logits)
    moved = logits.detach() - 1e-2 * slope
    assert entropy_of(moved).mean() < entropy_of(logits.detach()).mean()
    assert objective("em-ft").options() == {"second_temperature": 0.5}


def test_the_one_shot_loss_is_grpo_with_a_small_bonus() -> None:
    logits = table()
    _, batch = sampled(logits)
    batch = batch.replace(ref_logprob=batch.logprob)
    silent = {"type": "entropy_bonus", "coefficient": 0.0}
    outcome, bare = run(objective("one-shot-rlvr"), batch), run(objective("one-shot-rlvr", silent), batch)
    assert outcome.grad_entropy.tolist() == pytest.approx([-0.001 / batch.tokens] * batch.tokens)
    assert bare.grad_entropy is None
    assert outcome.grad_logprob.equal(bare.grad_logprob)


# -- ARES -----------------------------------------------------------------------------------------------------------


def turns(correct: list[float], counts: list[int], group: list[int] | None = None) -> TokenBatch:
    """Return completions of twelve uncertain tokens (entropy 1) whose first `counts` begin a turn of thought."""
    trigger = [float(place < count) for count in counts for place in range(12)]
    tokens = 12 * len(counts)
    return hand_batch(
        [12] * len(counts),
        correct,
        group,
        old_entropy=torch.ones(tokens, dtype=DOUBLE),
        ref_logprob=torch.full((tokens,), -1.5, dtype=DOUBLE),
        extra={"trigger": doubles(*trigger), "correct": doubles(*correct)},
    )


def test_levels_are_thirds_of_right_answers() -> None:
    batch = turns([1, 1, 0, 1, 0, 0, 0, 0, 0], [0] * 9, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert level_of(batch.extra["correct"], batch).tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_windows_do_not_reach_into_the_next_completion() -> None:
    batch = hand_batch([3, 4], [0.0, 0.0])
    mean, whole = window_mean(doubles(1, 2, 4, 8, 16, 32, 64), batch, 2)
    assert whole.tolist() == [True, False, False, True, True, False, False]
    assert mean[whole].tolist() == [3, 24, 48]


def test_ares_counts_only_turns_before_uncertain_tokens() -> None:
    batch = turns([1, 0], [3, 3])
    entropy = torch.ones(24, dtype=DOUBLE)
    entropy[12:] = 0.1
    now = Step(knobs={"trigger_entropy": 0.5})
    objective("ares").prepare(batch.replace(old_entropy=entropy), now)
    assert now.metrics["objective/turns_medium"] == 1.5
    assert now.metrics["objective/trigger_entropy"] == pytest.approx(0.1)  # median of both, the lower of two


def test_ares_charges_turns_on_easy_prompts_and_pays_for_them_on_hard_ones() -> None:
    few, many = 0, 8
    easy = shaped("ares", turns([1, 1, 1, 1], [few, few, many, many]))
    assert easy[0] == 1.0 > easy[2]
    hard = shaped("ares", turns([1, 0, 0, 0, 0], [many, few, few, few, 2]))
    level = shaped("ares", turns([1, 0, 0, 0, 0], [few, 2, few, few, many]))
    assert hard[0] > 1.0 > level[0]  # as many turns again as the rest, or fewer
    assert hard[1] == pytest.approx(0.0)  # a wrong answer within the margin earns nothing
    assert level[4] > 0  # one that tried longer does


def test_the_released_ares_pays_every_wrong_answer() -> None:
    released = {"type": "ares", "variant": "released"}
    assert shaped("ares", turns([0, 0, 0], [0, 0, 0]), released) == pytest.approx([0.3] * 3)  # 0.5 * 1.2 / 2
    assert shaped("ares", turns([0, 0, 0], [0, 0, 0])) == pytest.approx([0.0] * 3)


def test_the_ares_penalty_is_priced_by_difficulty() -> None:
    batch = turns([1, 1, 0, 0], [0] * 4, [0, 0, 1, 1])
    parts = [{"type": "no_policy"}, {"type": "ares_kl", "estimator": "k1", "easy": 2.0, "hard": 5.0}]
    now = Step()
    machine = objective("ares", *parts)
    outcome = machine.apply(machine.prepare(batch, now), now)
    assert outcome.grad_logprob.view(4, 12)[:, 0].tolist() == pytest.approx([c * 0.01 / 48 for c in (2, 2, 5, 5)])
    assert now.metrics["objective/kl_easy"] == pytest.approx(0.5)


# -- distributions over the group -------------------------------------------------------------------------------------


def flow(partition: list[float] | None = None, *, old: float = -1.0) -> TokenBatch:
    extra = {} if partition is None else {"log_partition": doubles(*partition)}
    return hand_batch(
        [1, 2],
        [0.0, 0.0],
        advantage=doubles(0.1, -0.1, -0.1),
        old_logprob=torch.full((3,), old, dtype=DOUBLE),
        ref_logprob=doubles(-1.0, -2.0, -2.0),
        extra=extra,
    )


def test_the_flow_residual_by_hand() -> None:
    # residuals: log Z - 1 - 15 * 0.1 + 1 = 0.5 and log Z - 1 + 1.5 + 2 = 3.5 with log Z = 2 and 1
    outcome = run(objective("flowrl"), flow([2.0, 1.0]))
    assert float(outcome.loss) == pytest.approx((0.25 + 12.25) / 2)
    assert outcome.grad_logprob.tolist() == pytest.approx([0.5, 1.75, 1.75])
    assert outcome.grad_extra["log_partition"].tolist() == pytest.approx([0.5, 3.5])


def test_the_flow_weight_is_clipped_as_described_and_not_as_released() -> None:
    batch = flow([2.0, 1.0], old=-1.5)  # ratios exp(0.5) and exp(1)
    described, released = (
        run(objective("flowrl", {"type": "flowrl", "variant": variant}), batch).grad_extra["log_partition"]
        for variant in ("described", "released")
    )
    assert described.tolist() == pytest.approx([0.5 * 1.2, 3.5 * 1.2])
    assert released.tolist() == pytest.approx([0.5 * math.exp(0.5), 3.5 * math.exp(1.0)])


def test_without_a_network_log_z_centres_the_group() -> None:
    batch = flow()
    outcome = run(objective("flowrl", {"type": "flowrl", "partition": "group"}), batch)
    weight = outcome.weight
    assert weight[0] > 0 > weight[1]  # above its share of reward: grows; below: shrinks
    assert float(outcome.loss) == pytest.approx(4.0)  # residuals -1.5 and 2.5 lie 2 either side of their mean


def test_distribution_matching_rests_where_odds_match_and_lifts_the_rarer_of_two_equals() -> None:
    alone = [{"type": "no_policy"}]
    logprob = doubles(-1.0, -3.0)
    even = hand_batch([1, 1], [1.0, 1.0], logprob=logprob)
    outcome = run(objective("dmpo", *alone), even)
    assert outcome.grad_logprob[0] > 0 > outcome.grad_logprob[1]
    assert float(outcome.grad_logprob.sum()) == pytest.approx(0, abs=1e-12)
    matched = run(objective("dmpo", *alone), hand_batch([1, 1], [2.0, 0.0], logprob=logprob))
    assert float(matched.loss) == pytest.approx(0, abs=1e-12)
    assert matched.grad_logprob.tolist() == pytest.approx([0, 0], abs=1e-12)


def test_matching_equals_keeps_entropy_that_grpo_does_not_touch() -> None:
    assert change(objective("grpo"), rewarded=False) == 0
    assert change(objective("dmpo"), rewarded=False) > 0


# -- Confucius3 -------------------------------------------------------------------------------------------------------


def test_targeted_entropy_pulls_from_both_sides() -> None:
    def moved(target: float) -> float:
        return change(objective("confucius3", {"type": "targeted_entropy", "target": target}), rewarded=False)

    level = float(entropy_of(table()).mean())
    assert moved(level + 0.2) > 0 > moved(level - 0.2)
    assert objective("confucius3").target(3, 10, {}) == (0.55, 0.55)


def test_seldom_solved_prompts_weigh_more_and_unit_rewards_are_stretched() -> None:
    signed = hand_batch([1] * 4, [1.0, -1.0, -1.0, -1.0], entropy=torch.ones(4, dtype=DOUBLE))
    unit = signed.replace(reward=(signed.reward + 1) / 2)
    expected = [1.5 * 1.384, -0.5 * 1.384, -0.5 * 1.384, -0.5 * 1.384]  # mean -0.5: weight 1.256 + 0.128
    assert objective("confucius3").prepare(signed, Step()).advantage.tolist() == pytest.approx(expected)
    stretched = objective("confucius3", {"type": "hardness_weight", "rewards": "unit"}).prepare(unit, Step())
    assert stretched.advantage.tolist() == pytest.approx(expected)
    equal = hand_batch([1] * 3, [0.1] * 3, entropy=torch.ones(3, dtype=DOUBLE))
    assert not objective("confucius3").prepare(equal, Step()).advantage.any()


def test_recent_samples_are_learnt_from_without_clip_or_correction() -> None:
    batch = hand_batch(
        [1, 1],
        [1.0, -1.0],
        old_logprob=doubles(-5.0, -5.0),
        engine_logprob=doubles(-9.0, -9.0),
        entropy=doubles(1.0, 1.0),
        extra={"replayed": doubles(1, 0)},
    )
    weight = run(objective("confucius3-rsr", {"type": "ppo_clip", "correction": "token"}), batch).weight
    assert float(weight[0]) == pytest.approx(1.256)
    assert float(weight[1]) != pytest.approx(-1.256)


@pytest.mark.parametrize(
    ("preset", "says"),
    [
        ("confucius3-rsr", "replayed .* rollouts kept from earlier steps"),
        ("flowrl", "log_partition .* value network"),
        ("evol-rl", "embedding .* sentence encoder"),
    ],
)
def test_a_run_that_lacks_a_statistic_is_refused_by_name(preset: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RunConfig.model_validate({"objective": {"preset": preset}})


def test_flow_residuals_need_the_mean_over_completions() -> None:
    with pytest.raises(Exception, match="flowrl needs seq_mean_token_mean"):
        evaluate({"preset": "flowrl", "parts": [{"type": "token_mean"}]}, {"logprob": [[-1.0]]})


# -- every variant, on batches as degenerate as they come -------------------------------------------------------------

VARIANTS = {
    "free form": ("empo", {"type": "empo", "kind": "free_form"}),
    "voting": ("empo", {"type": "empo", "kind": "voting"}),
    "rounded": ("empo", {"type": "empo", "variant": "released"}),
    "first votes": ("ttrl", {"type": "sub_sample", "choose": "first"}),
    "judged": ("evol-rl", {"type": "evol_rl", "label": "correct"}),
    "released turns": ("ares", {"type": "ares", "variant": "released"}),
    "log-prob": ("em-rl", {"type": "confidence_reward", "measure": "logprob"}),
    "wrong ones": ("random-reward", {"type": "spurious_reward", "rule": "wrong"}),
    "unclipped flow": ("flowrl", {"type": "flowrl", "variant": "released"}),
    "centred flow": ("flowrl", {"type": "flowrl", "partition": "group"}),
    "unit rewards": ("confucius3", {"type": "hardness_weight", "rewards": "unit"}),
    "uncertain negatives": ("grpo", {"type": "uncertain_negatives", "select": "completion"}),
    "raw": ("entropic", {"type": "raw_reward"}),
}


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(batch=batches())
def test_degenerate_batches_give_finite_numbers_in_every_variant(name: str, batch: TokenBatch) -> None:
    preset, part = VARIANTS[name]
    outcome = run(objective(preset, part), batch, total_steps=5)
    found = [outcome.loss, outcome.grad_logprob, outcome.weight, outcome.advantage, *outcome.grad_extra.values()]
    assert all(bool(torch.isfinite(values).all()) for values in found)
    assert all(math.isfinite(value) for value in outcome.metrics.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_order_of_completions_does_not_matter_in_any_variant(name: str) -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    preset, part = VARIANTS[name]
    dice = torch.Generator().manual_seed(seed)
    batch = random_batch(dice)
    moved, tokens = permuted(batch, torch.randperm(batch.sequences, generator=dice).tolist())
    machine = objective(preset, part)
    found, expected = run(machine, moved, seed=seed), run(machine, batch, seed=seed)
    torch.testing.assert_close(found.grad_logprob, expected.grad_logprob[tokens])
    torch.testing.assert_close(found.mask, expected.mask[tokens])


def test_ranks_are_taken_within_the_group_among_valid_completions() -> None:
    batch = answers(*range(6), group=[0, 1, 0, 1, 0, 0], valid=torch.tensor([True] * 5 + [False]))
    assert group_rank(doubles(3, 1, 2, 1, 9, 0), batch).tolist() == [1, 0, 0, 1, 2, -1]
    assert group_rank(torch.zeros(0), answers()).tolist() == []
