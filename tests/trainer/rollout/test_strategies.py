"""Group-like strategies: they end, keep their numbers, choose what they say, and do not mind how many processes run."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.rollout.players import Grade, dice, play
from trainer.rollout import SamplerSpec
from trainer.rollout.adaptive import Adaptive, extra
from trainer.rollout.dynamic import Dynamic
from trainer.rollout.groups import Groups
from trainer.rollout.modifiers import ForkTemperature
from trainer.rollout.oversample import Oversample, spread

SEEDS = st.integers(0, 10**9)


def always(right: bool) -> Grade:
    return lambda request: right


def sound(picks, players, most: int) -> None:
    """Assert what every strategy owes the collector."""
    places = [(pick.group, pick.auxiliary, pick.sample) for pick in picks]
    assert len(set(places)) == len(places)
    assert all(0 <= pick.sample < most for pick in picks)
    for player in players:
        requests = [request for wave in player.waves for request in wave]
        assert len({request.id for request in requests}) == len(requests)
        drawn = [(request.group, request.sample, request.auxiliary) for request in requests]
        assert len(set(drawn)) == len(drawn)
        by_place = Counter(request.seed for request in requests)
        assert max(by_place.values()) == 1


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    prompts=st.sampled_from([2, 4, 6, 8]),
    samples=st.integers(2, 5),
    waves=st.integers(1, 6),
    refill=st.sampled_from(["whole", "missing"]),
    by=st.sampled_from(["right", "reward"]),
)
def test_dynamic_sampling_fills_the_step_whatever_the_policy_solves(seed, prompts, samples, waves, refill, by):
    def strategy(scene):
        return Dynamic(scene, by, waves, refill)

    picks, players, plans = play(strategy, prompts, samples, dice(seed))
    sound(picks, players, samples)
    assert {pick.group for pick in picks} == set(range(prompts))
    assert Counter(pick.group for pick in picks) == dict.fromkeys(range(prompts), samples)
    assert len(players[0].waves) <= waves
    for _, members in itertools.groupby(picks, key=lambda pick: pick.group):
        members = list(members)
        differs = len({one.done.right for one in members if one.done.right is not None}) == 2
        assert all(one.learns == differs for one in members)
        assert len({one.done.request.group for one in members}) == 1
    learning = {pick.group for pick in picks if pick.learns}
    if len(learning) < prompts:  # all waves were used up, and no group with a difference was left lying
        assert len(players[0].waves) == waves
        assert len(plans[0].good) == len(learning)
    kept = [pick for pick in picks if pick.done.request.group < prompts and pick.learns]
    assert all(pick.group == pick.done.request.group for pick in kept)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, processes=st.sampled_from([2, 4]), waves=st.integers(1, 4))
def test_dynamic_sampling_chooses_alike_on_one_process_and_on_several(seed, processes, waves):
    def strategy(scene):
        return Dynamic(scene, "right", waves, "whole")

    alone, _, (plan,) = play(strategy, 8, 3, dice(seed))
    shared, players, plans = play(strategy, 8, 3, dice(seed), processes=processes)

    def told(picks):
        return [(pick.group, pick.sample, pick.done.request.group, pick.learns) for pick in picks]

    assert told(shared) == told(alone)
    assert len({len(player.waves) for player in players}) == 1
    assert all(other.figures() == plan.figures() for other in plans)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, processes=st.sampled_from([2, 4]))
def test_a_smaller_refill_ends_together_too(seed, processes):
    picks, players, _ = play(lambda scene: Dynamic(scene, "right", 5, "missing"), 8, 3, dice(seed), processes=processes)
    assert Counter(pick.group for pick in picks) == dict.fromkeys(range(8), 3)
    assert all(wave for player in players for wave in player.waves)
    assert len({len(player.waves) for player in players}) == 1


def test_dynamic_sampling_by_hand():
    """Groups 0 and 2 of four differ; of the next four 4 is all right, 5 and 7 differ, 6 is all wrong."""
    varying = {0, 2, 5, 7}
    picks, players, (plan,) = play(
        lambda scene: Dynamic(scene), 4, 2, lambda one: one.sample == 0 if one.group in varying else one.group == 4
    )
    assert [pick.done.request.group for pick in picks[::2]] == [0, 5, 2, 7]
    assert all(pick.learns for pick in picks)
    assert len(players[0].waves) == 2
    assert plan.figures() == {"rollout/kept_share": 0.5, "rollout/surplus": 0.0}


def test_the_surplus_of_the_last_wave_is_cut():
    picks, _, (plan,) = play(lambda scene: Dynamic(scene), 4, 2, lambda one: one.group != 1 and one.sample == 0)
    assert [pick.done.request.group for pick in picks[::2]] == [0, 4, 2, 3]
    assert plan.figures() == {"rollout/kept_share": 7 / 8, "rollout/surplus": 3.0}


@pytest.mark.parametrize("right", [True, False])
def test_where_nothing_differs_the_first_wave_fills_the_step_and_nothing_learns(right):
    picks, players, _ = play(lambda scene: Dynamic(scene, max_waves=3), 4, 2, always(right))
    assert [pick.done.request.group for pick in picks[::2]] == [0, 1, 2, 3]
    assert not any(pick.learns for pick in picks)
    assert [len(wave) for wave in players[0].waves] == [8, 8, 8]


def test_groups_that_nobody_asks_for_again_are_forgotten():
    """Of the second wave, 4 and 5 are all right and can neither stay nor fill up."""
    varying = {0, 6, 8, 9, 10}
    _, (player,), (plan,) = play(
        lambda scene: Dynamic(scene), 4, 2, lambda one: one.sample == 0 if one.group in varying else True
    )
    assert {one.request.group for one in player.done} == {0, 1, 2, 3, 6, 8, 9, 10}
    assert plan.figures()["rollout/kept_share"] == 5 / 12  # and still counted


def test_a_refill_of_what_is_missing_asks_for_what_is_likely_enough():
    """3 of 4 groups differ, so one missing group takes 1 / 0.75 prompts: 2."""
    _, players, _ = play(
        lambda scene: Dynamic(scene, refill="missing"), 4, 2, lambda one: one.group != 1 and one.sample == 0
    )
    assert [len(wave) for wave in players[0].waves] == [8, 4]


# By hand, N = 8. Centred, S(a) = 2a(1 - a): S(1/2) = 1/2, so P = 4. a = 1/8: S = 7/32, N S = 7/4; equal: (4 - 7/4) /
# (7/32) = 10.3; hard: (2 * 7/8 * 4 - 7/4) / (7/32) = 24. a = 1/4: S = 3/8, N S = 3; equal: 2.67; hard: 8. a = 3/8: S =
# 15/32, N S = 15/4; equal: 0.53; hard: (5 - 15/4) / (15/32) = 2.67. a = 0 counts as 1/16: S = 15/128, N S = 15/16;
# equal: 26.1; hard: (7.5 - 15/16) / (15/128) = 56. Standardised, S(a) = 2 sqrt(a(1 - a)): P = 8. a = 1/4: S = 0.866;
# equal: (8 - 6.928) / 0.866 = 1.24; hard: (12 - 6.928) / 0.866 = 5.86. a = 0: S = 0.4841; equal: 8.52; hard: 22.98.
BY_HAND = [
    (0, "centred", 27, 56), (1 / 8, "centred", 11, 24), (2 / 8, "centred", 3, 8), (3 / 8, "centred", 1, 3),
    (4 / 8, "centred", 0, 0), (7 / 8, "centred", 0, 0), (1.0, "centred", 0, 0),
    (0, "standardised", 9, 23), (2 / 8, "standardised", 2, 6), (4 / 8, "standardised", 0, 0),
]  # fmt: skip


@pytest.mark.parametrize(("accuracy", "advantage", "equal", "hard"), BY_HAND)
def test_extra_samples_by_hand(accuracy, advantage, equal, hard):
    assert extra(accuracy, 8, 1000, schedule="equal", advantage=advantage) == equal
    assert extra(accuracy, 8, 1000, schedule="hard", advantage=advantage) == hard
    assert extra(accuracy, 8, 20, schedule="hard", advantage=advantage) == min(hard, 12)


@given(
    samples=st.integers(2, 64),
    room=st.integers(0, 64),
    data=st.data(),
    schedule=st.sampled_from(["equal", "hard"]),
    advantage=st.sampled_from(["centred", "standardised"]),
)
def test_harder_prompts_never_get_fewer_samples_and_reach_their_aim(samples, room, data, schedule, advantage):
    found = [
        extra(right / samples, samples, samples + room, schedule=schedule, advantage=advantage)
        for right in range(samples + 1)
    ]
    assert found == sorted(found, reverse=True)
    assert all(0 <= more <= room for more in found)
    right = data.draw(st.integers(1, samples))
    if (share := right / samples) < 0.5 and found[right] < room:
        size = share * (1 - share) if advantage == "centred" else math.sqrt(share * (1 - share))
        full = 0.25 if advantage == "centred" else 0.5
        aim = full if schedule == "equal" else 2 * (1 - share) * full
        assert (samples + found[right]) * size >= samples * aim * (1 - 1e-6)  # advantages add up to the aim
        assert (samples + found[right] - 1) * size < samples * aim * (1 + 1e-6)  # and one sample less would not do


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, samples=st.integers(2, 6), limit=st.integers(2, 20), schedule=st.sampled_from(["equal", "hard"]))
def test_adaptive_sampling_merges_two_waves_into_one_group(seed, samples, limit, schedule):
    picks, players, (plan,) = play(
        lambda scene: Adaptive(scene, schedule=schedule, limit=limit), 5, samples, dice(seed)
    )
    sound(picks, players, plan.most)
    assert len(players[0].waves) <= 2
    first = {
        group: [pick.done.right for pick in members if pick.sample < samples]
        for group, members in ((g, list(m)) for g, m in itertools.groupby(picks, key=lambda pick: pick.group))
    }
    for group, answers in first.items():
        assert len(answers) == samples
        graded = [answer for answer in answers if answer is not None]
        share = sum(graded) / len(graded) if graded else 1.0
        more = extra(share, samples, plan.most, schedule=schedule, advantage="centred")
        assert sum(pick.group == group for pick in picks) == samples + more
    assert all(math.isfinite(value) for value in plan.figures().values())


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, processes=st.sampled_from([2, 4]))
def test_adaptive_sampling_tells_the_same_on_one_process_and_on_several(seed, processes):
    alone, _, (plan,) = play(lambda scene: Adaptive(scene), 8, 4, dice(seed))
    shared, _, plans = play(lambda scene: Adaptive(scene), 8, 4, dice(seed), processes=processes)
    assert [(one.group, one.sample) for one in shared] == [(one.group, one.sample) for one in alone]
    assert all(other.figures() == pytest.approx(plan.figures()) for other in plans)


def test_what_the_second_wave_solves_is_told():
    """Prompt 0 is solved by its fifth sample alone, prompt 1 by none, prompt 2 by all."""
    picks, _, (plan,) = play(
        lambda scene: Adaptive(scene, limit=8), 3, 4, lambda one: one.group == 2 or (one.group, one.sample) == (0, 4)
    )
    assert Counter(pick.group for pick in picks) == {0: 8, 1: 8, 2: 4}
    assert plan.figures() == {
        "rollout/harder_share": 2 / 3,
        "rollout/extra_samples": 8 / 3,
        "rollout/first_right": 1 / 3,
        "rollout/solved_later": 1 / 2,
    }


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS, samples=st.integers(1, 4), factor=st.integers(1, 4), keep=st.sampled_from(["spread", "first", "all"]),
    finished=st.booleans(),
)  # fmt: skip
def test_oversampling_keeps_as_many_as_it_is_asked_for(seed, samples, factor, keep, finished):
    picks, players, (plan,) = play(
        lambda scene: Oversample(scene, factor * samples, 1.2, keep, finished), 3, samples, dice(seed)
    )
    sound(picks, players, plan.most)
    spec = SamplerSpec(1.5, modifiers=(ForkTemperature(0.0, 1.2, 1.2),))  # log-probs stay those at 1.5
    assert {request.sampler for request in players[0].waves[0]} == {spec}
    wanted = factor * samples if keep == "all" else samples
    assert Counter(pick.group for pick in picks) == dict.fromkeys(range(3), wanted)
    assert all({pick.sample for pick in picks if pick.group == group} == set(range(wanted)) for group in range(3))
    for group in range(3):
        members = [one for one in players[0].done if one.request.group == group]
        whole = sum(one.generation.finish_reason == "stop" for one in members)
        cut = sum(pick.done.generation.finish_reason == "length" for pick in picks if pick.group == group)
        if finished and keep != "all":
            assert cut == max(0, wanted - whole)


@settings(max_examples=60, deadline=None)
@given(rewards=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.3]), min_size=1, max_size=9), data=st.data())
def test_the_kept_rewards_vary_most(rewards, data):
    number = data.draw(st.integers(1, len(rewards)))
    _, (player,), _ = play(lambda scene: Groups(scene), 1, len(rewards), always(True))
    pool = [one.__class__(**{**vars(one), "reward": reward}) for one, reward in zip(player.done, rewards, strict=True)]

    def variance(values):
        return sum((value - sum(values) / len(values)) ** 2 for value in values) / len(values)

    chosen = spread(pool, number)
    assert len({one.request.id for one in chosen}) == number
    best = max(variance(values) for values in itertools.combinations(rewards, number))
    assert variance([one.reward for one in chosen]) == pytest.approx(best)


def test_of_right_and_wrong_as_many_of_each_are_kept():
    picks, _, _ = play(lambda scene: Oversample(scene, 16), 1, 8, lambda one: one.sample in (0, 1, 2, 5, 6, 7, 8, 10))
    assert sum(bool(pick.done.right) for pick in picks) == 4


def test_side_batches_are_still_drawn_by_plain_groups():
    """AEPO and SCOPE-RL: some prompts once more at another temperature, after all others, with seeds of their own."""
    _, (player,), _ = play(lambda scene: Groups(scene), 3, 2, always(True))
    object.__setattr__(player.scene, "auxiliary_groups", frozenset({1}))
    object.__setattr__(player.scene, "auxiliary_temperature", 0.8)
    picks = Groups(player.scene).finish([])
    wave = Groups(player.scene).first_wave()
    assert picks == []
    assert [(one.group, one.sample, one.auxiliary) for one in wave[6:]] == [(1, 0, True), (1, 1, True)]
    assert [one.sampler.temperature for one in wave] == [1.5] * 6 + [0.8] * 2
    assert len({one.seed for one in wave}) == len({one.id for one in wave}) == 8
