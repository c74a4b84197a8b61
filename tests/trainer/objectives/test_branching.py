"""Branching rollouts: what every method keeps to, and each method's own rule by hand."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.rollout.forest import STOP, Forest, told
from trainer.config import load
from trainer.errors import ConfigError
from trainer.objectives import PARTS, Step
from trainer.objectives.branching.cure import Cure
from trainer.objectives.branching.echo import EchoRollout
from trainer.objectives.branching.echo_strategy import Signals, streak, trailing
from trainer.objectives.branching.etmr import Etmr
from trainer.objectives.branching.rose import Rose
from trainer.objectives.branching.treerl import EpTree
from trainer.rollout import Generation, GenRequest, Pick
from trainer.rollout.groups import Groups
from trainer.rollout.tree import Tree

LIVELY = {"entropy_high": 1.2, "entropy_low": 0.4, "branch_confidence": 9.0, "min_depth": 1, "rise": -20, "roots": 2}
CALM = {"prune_confidence": 0.0, "tail_confidence": 0.0, "rise_limit": 20}  # never prunes
PLAYERS = {
    "cure": lambda dice: Cure(continuations=dice.randint(1, 3), candidates=dice.randint(1, 9), min_characters=1),
    "cure_random": lambda dice: Cure(continuations=2, choose="random"),
    "etmr": lambda dice: Etmr(forks=dice.randint(1, 3), continuations=dice.randint(1, 2)),
    "eptree": lambda dice: EpTree(forks=dice.randint(1, 2), continuations=1, rounds=dice.randint(1, 3)),
    "echo": lambda dice: EchoRollout(**LIVELY, depth=dice.randint(1, 3), tail_confidence=dice.uniform(0, 9)),
    "rose": lambda dice: Rose(epsilon=dice.random()),
}


def play(part: Any, seed: int, **world: Any) -> tuple[Forest, Any, list[Pick]]:
    forest = Forest(seed, **world)
    strategy = part.strategy(forest.scene(), Step())
    return forest, strategy, forest.play(strategy)


@pytest.mark.parametrize("player", PLAYERS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), samples=st.integers(7, 17), max_new=st.integers(1, 12))
def test_every_method_keeps_to_the_group_and_to_its_parents(player: str, seed: int, samples: int, max_new: int) -> None:
    forest, strategy, picks = play(
        PLAYERS[player](random.Random(seed)), seed, samples=samples, max_new=max_new, prompts=3
    )
    places = [(pick.group, pick.sample) for pick in picks]
    assert sorted(places) == [(group, sample) for group in range(3) for sample in range(samples)]
    assert strategy.most == samples
    asked = {request.id: request for wave in forest.waves for request in wave}
    known = {pick.done.request.id: pick.done for pick in picks}
    assert known.keys() == asked.keys()
    assert len({request.seed for request in asked.values()}) == len(asked)
    for index, request in asked.items():
        assert request.max_new + len(request.prefix_ids) == max_new
        assert request.max_new >= 1
        if request.parent is None:
            assert not request.prefix_ids
            continue
        parent, at = known[request.parent], request.fork_at
        assert parent.request.group == request.group
        assert at is not None
        assert 0 <= at < len(parent.ids)
        assert known[index].ids[:at] == parent.ids[:at]
        assert known[index].entropy[:at] == parent.entropy[:at]
    assert all(math.isfinite(value) for value in strategy.figures().values())


@pytest.mark.parametrize("player", PLAYERS)
def test_the_same_seed_grows_the_same_trees(player: str) -> None:
    seed = random.randrange(2**31)
    print(seed)
    first, second = (play(PLAYERS[player](random.Random(seed)), seed, samples=9)[2] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("player", PLAYERS)
def test_whole_completions_are_those_of_plain_groups(player: str) -> None:
    seed = random.randrange(2**31)
    print(seed)
    plain, _, _ = Forest(seed, samples=9), None, None
    expected = {(p.group, p.sample): p.done.ids for p in plain.play(Groups(plain.scene()))}
    _, _, picks = play(PLAYERS[player](random.Random(seed)), seed, samples=9)
    whole = [
        pick for pick in picks if pick.done.request.parent is None and pick.done.generation.finish_reason != "pruned"
    ]
    assert whole or player == "echo"
    assert all(pick.done.ids == expected[pick.group, pick.sample] for pick in whole)


@pytest.mark.parametrize("part", [Etmr(), EpTree(continuations=1, rounds=2, ends=[])])
def test_no_place_is_used_twice_while_there_are_others(part: Any) -> None:
    longest = 0
    while longest < 5:  # a short completion has too few places
        seed = random.randrange(2**31)
        _, _, picks = play(part, seed, samples=10, max_new=40, sharpness=0.2)
        longest = min(len(pick.done.ids) for pick in picks if pick.done.request.parent is None)
    print(seed)
    forks = Counter((p.done.request.parent, p.done.request.fork_at) for p in picks if p.done.request.parent is not None)
    assert set(forks.values()) == {part.continuations}
    assert len(forks) == 2 * 2 * part.forks * getattr(part, "rounds", 1)  # prompts times trees


def group_of(part: Any, samples: int) -> Counter[int]:
    _, _, picks = play(part, 5, samples=samples, prompts=1)
    return Counter(pick.done.request.parent is None for pick in picks)


@pytest.mark.parametrize(
    ("part", "samples", "whole"),
    [
        (Cure(continuations=3), 16, 4),  # the authors' n1 = 4, n2 = 3
        (Cure(continuations=3), 18, 6),  # two stay whole
        (Etmr(), 60, 12),  # M = 12, N = 2, B = 2
        (Etmr(forks=3, continuations=2), 16, 4),
        (EpTree(), 30, 6),  # m = 6, n = 2, l = 1, t = 2
        (EpTree(forks=1, continuations=1, rounds=3), 4, 1),
        (Rose(epsilon=1), 5, 5),
        (Rose(epsilon=0), 5, 1),
    ],
)
def test_samples_per_prompt_are_shared_out_to_trees(part: Any, samples: int, whole: int) -> None:
    part = part.model_copy(update={"min_characters": 0}) if isinstance(part, Cure) else part
    found = group_of(part, samples)
    assert found[False] <= samples - whole
    assert found.total() == samples
    forest = Forest(5, samples=samples, prompts=1)
    assert len(part.strategy(forest.scene(), Step()).first_wave()) == (1 if isinstance(part, Rose) else whole)


def test_a_group_too_small_for_one_tree_is_refused_with_the_number() -> None:
    for preset, least in (("cure", 4), ("ettrl", 5), ("treerl", 5)):
        config = {"objective": {"preset": preset}, "sampling": {"samples_per_prompt": least - 1}}
        with pytest.raises(ConfigError, match=f"samples_per_prompt.*take at least {least}"):
            load(config)
        config["sampling"]["samples_per_prompt"] = least
        load(config)


def test_branching_does_not_go_together_with_extra_rollouts() -> None:
    with pytest.raises(ConfigError, match="cure does not work together with aepo_sampling"):
        load({"objective": {"preset": "cure", "parts": [{"type": "aepo_sampling"}]}})


def test_forks_ranked_by_the_middle_of_bounds_are_counted() -> None:
    forest = Forest(7, samples=5)
    exact = forest.generate

    def bounded(request: GenRequest) -> Generation:
        made = exact(request)
        return replace(made, estimator="bounds", low=[0.0] * len(made.ids), high=[9.0] * len(made.ids))

    forest.generate = bounded  # type: ignore[method-assign]
    strategy = Etmr().strategy(forest.scene(), Step())
    forest.play(strategy)
    assert strategy.figures()["rollout/fork_bounds_share"] == 1


def test_figures_are_those_of_all_processes_together() -> None:
    _, one, _ = play(Etmr(), 7, samples=10, prompts=1)
    _, other, _ = play(Etmr(), 8, samples=10, prompts=1)
    tallies = [one.tally(), other.tally()]
    one.scene = replace(one.scene, together=lambda own: tallies)
    found = one.figures()
    assert found["rollout/new_token_share"] == (tallies[0]["new"] + tallies[1]["new"]) / (
        tallies[0]["tokens"] + tallies[1]["tokens"]
    )
    assert found["rollout/forks"] == 8


# -- CURE ---------------------------------------------------------------------------------------------------------

#         "see"  ","  " the answer"  ""  " é"  " so"  " a"  " hm"; place 0, short ones and the special one drop out
IDS = (4, 1, 5, STOP, 8, 6, 2, 10)
ENTROPY = [9.0, 8.0, 1.0, 7.0, 6.0, 3.0, 5.0, 2.0]


def critical(part: Cure, seed: int) -> int | None:
    forest, tree = Forest(seed, samples=4), Tree(budget=4, depth=1)
    tree.add(told(IDS, [-1.0] * 8, ENTROPY, request=GenRequest(0, 0, 0, (1,), 1, 10)))
    place = part.strategy(forest.scene(), Step()).critical(tree, 0)
    return None if place is None else place.at


def test_cure_draws_evenly_among_the_most_entropic_allowed_tokens() -> None:
    first = random.randrange(2**31)
    print(first)
    found = Counter(critical(Cure(candidates=2), first + draw) for draw in range(400))
    assert set(found) == {5, 7}  # entropies 3 and 2; 1.0 at place 2 is third
    assert min(found.values()) > 140  # 6 deviations below the half
    assert {critical(Cure(candidates=1), first + draw) for draw in range(20)} == {5}


def test_cure_s_control_arm_draws_among_all_allowed_tokens() -> None:
    first = random.randrange(2**31)
    print(first)
    found = Counter(critical(Cure(candidates=1, choose="random"), first + draw) for draw in range(600))
    assert set(found) == {2, 5, 7}
    assert min(found.values()) > 130


def test_cure_takes_single_characters_where_it_is_told_to() -> None:
    assert (
        critical(Cure(candidates=1, min_characters=1), 3) == 1
    )  # "," with entropy 8; the first and the special stay out


def test_cure_s_prefix_is_masked_and_its_continuations_share_one_place() -> None:
    _, _, picks = play(Cure(continuations=3, min_characters=0), 11, samples=8, prompts=1)
    assert {pick.prefix for pick in picks} == {"masked"}
    forks = Counter((p.done.request.parent, p.done.request.fork_at) for p in picks if p.done.request.parent is not None)
    assert set(forks.values()) == {3}


def test_a_completion_without_a_critical_token_is_followed_by_fresh_samples() -> None:
    _, strategy, picks = play(Cure(continuations=1, min_characters=999), 11, samples=6)
    assert all(pick.done.request.parent is None for pick in picks)
    assert strategy.figures()["rollout/whole"] == 6
    assert "rollout/fork_value" not in strategy.figures()


# -- EPTree -------------------------------------------------------------------------------------------------------


def test_eptree_goes_on_no_further_than_the_answer() -> None:
    part, forest = EpTree(), Forest(1, samples=5)
    strategy = part.strategy(forest.scene(), Step())
    done = told((4, 6, 5, 7, 9, 3), [-1.0] * 6, [1.0] * 6)  # " the answer" at 2, " conclusion" at 4
    assert strategy.allowed(done) == [True, True, True, False, False, False]
    assert EpTree(ends=[]).strategy(forest.scene(), Step()).allowed(done) == [True] * 6


def test_a_second_round_looks_at_all_branches_and_uses_no_place_again() -> None:
    part = EpTree(forks=1, continuations=1, rounds=2, ends=[])
    forest, strategy, picks = play(part, 8, samples=3, prompts=1, max_new=20, sharpness=0.5)
    root, first, second = (pick.done for pick in sorted(picks, key=lambda pick: pick.sample))
    surprise = max(range(len(root.ids)), key=lambda at: -root.logprob[at])
    assert (first.request.parent, first.request.fork_at) == (0, surprise)
    open_ = [(-root.logprob[at], 0, at) for at in range(len(root.ids)) if at != surprise]
    open_ += [(-first.logprob[at], first.request.id, at) for at in range(surprise + 1, len(first.ids))]
    assert (second.request.parent, second.request.fork_at) == max(open_)[1:]
    assert [len(wave) for wave in forest.waves] == [1, 1, 1]
    assert strategy.figures()["rollout/forks"] == 2


# -- ROSE ---------------------------------------------------------------------------------------------------------


def test_rose_forks_at_the_most_entropic_unused_token_of_the_prompt() -> None:
    forest, _, picks = play(Rose(epsilon=0), 21, samples=5, prompts=1, max_new=8)
    known, used = {}, set[tuple[int, int]]()
    for done in (pick.done for pick in sorted(picks, key=lambda pick: pick.sample)):
        if known:
            open_ = [
                (other.entropy[at], index, at)
                for index, other in known.items()
                for at in range(0 if other.request.parent is None else other.request.fork_at + 1, len(other.ids))
                if (index, at) not in used
            ]
            assert (done.request.parent, done.request.fork_at) == max(open_)[1:]
            used.add((done.request.parent, done.request.fork_at))
        known[done.request.id] = done
    assert [len(wave) for wave in forest.waves] == [1] * 5


def test_rose_begins_anew_as_often_as_epsilon_says() -> None:
    _, strategy, _ = play(Rose(epsilon=0.25), random.randrange(2**31), samples=60, prompts=8, max_new=5)
    assert pytest.approx(strategy.figures()["rollout/whole"], abs=6 * math.sqrt(59 * 0.1875 / 8)) == 1 + 59 * 0.25


# -- ECHO ---------------------------------------------------------------------------------------------------------


def test_trailing_means_and_streaks() -> None:
    assert trailing(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]
    assert streak(np.array([True, False, True, True, False, True])).tolist() == [1, 0, 1, 2, 0, 1]
    assert streak(np.array([], dtype=bool)).tolist() == []


def test_echo_forks_at_the_first_token_that_is_unsure_has_risen_and_is_unconfident() -> None:
    part = EchoRollout(entropy_high=2.0, branch_confidence=3.0, rise=0.5, entropy_window=2, confidence_window=2)
    entropy = [2.5, 2.5, 1.0, 1.8, 2.6, 2.1]
    confidence = [9.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    path = Signals.of(entropy, confidence, part)
    assert path.rise.tolist() == pytest.approx([0, 0, -1.5, 0.05, 1.2, -0.1])
    assert path.recent.tolist() == [9, 5.5, 2, 2, 2, 2]
    assert path.fork(0, part) == 4
    assert path.fork(5, part) is None


def test_echo_s_width_by_hand() -> None:
    part = EchoRollout(entropy_high=2.0, entropy_low=1.0, branch_confidence=4.0, width=9, confidence_window=1)
    path = Signals.of([2.0, 3.0, 1.0, 9.0], [4.0, 2.0, 8.0, 4.0], part)
    # 1 + 2 (H - 1) / 1 - 1 (C - 4) / 4
    assert [path.width(at, part) for at in range(4)] == [3, 6, 1, 9]  # 3; 1 + 4 + .5 to even; 1 + 0 - 1; 17, cut off


@pytest.mark.parametrize(
    ("entropy", "confidence", "end"),
    [
        ([1.0] * 6, [5.0, 5.0, 1.0, 5.0, 5.0, 5.0], 2),  # confidence below theta_prune
        ([1.0] * 6, [9.0, 4.0, 3.0, 1.8, 1.8, 1.8], 3),  # fell three times, to 1.8
        ([1.0] * 6, [9.0, 9.0, 3.0, 1.8, 1.8, 1.8], None),  # fell twice
        ([1.0, 1.1, 1.3, 2.3, 2.3, 1.0], [9.0] * 6, 3),  # rose three times, by 1
        ([1.0, 1.1, 1.3, 1.7, 1.7, 1.0], [9.0] * 6, None),  # rose by 0.4 only
    ],
)
def test_echo_prunes_by_three_rules(entropy: list[float], confidence: list[float], end: int | None) -> None:
    part = EchoRollout(prune_confidence=1.7, tail_confidence=2.0, tail_window=1, confidence_window=1, entropy_window=1)
    assert Signals.of(entropy, confidence, part).end(part) == end


def test_echo_s_branches_begin_with_the_likeliest_other_tokens() -> None:
    part = EchoRollout(**{**LIVELY, **CALM, "entropy_high": 0.9, "width": 3, "confidence_weight": 0, "depth": 1})
    forest, strategy, picks = play(part, 4, samples=12, prompts=4)
    branches = [pick.done for pick in picks if pick.done.request.parent is not None]
    assert branches
    known = {pick.done.request.id: pick.done for pick in picks}
    for done in branches:
        request, parent = done.request, known[done.request.parent]
        at = request.fork_at
        logprobs = forest.logprobs((*request.prompt_ids, *parent.ids[:at]))
        ranked = sorted(range(len(logprobs)), key=lambda token: -logprobs[token])[:5]
        assert done.ids[at] in [token for token in ranked if token not in (parent.ids[at], STOP)][:2]
        assert request.given_logprob == (logprobs[done.ids[at]],)
        assert done.logprob[at] == logprobs[done.ids[at]]
    assert strategy.figures()["rollout/pruned_share"] == 0
    assert 1 <= strategy.figures()["rollout/fork_width"] <= 3


def test_echo_cuts_off_what_it_prunes() -> None:
    part = EchoRollout(**{**LIVELY, "prune_confidence": 2.6})
    _, strategy, picks = play(part, 9, samples=8, prompts=4)
    pruned = [pick.done for pick in picks if pick.done.generation.finish_reason == "pruned"]
    assert len(pruned) / len(picks) == strategy.figures()["rollout/pruned_share"] > 0
    for done in pruned:
        assert len(done.ids) == len(done.logprob) == len(done.request.prefix_ids) + len(done.generation.ids) < 10


def test_echo_says_which_thresholds_can_never_be_met() -> None:
    published = EchoRollout(entropy_high=3.5, branch_confidence=1.2, prune_confidence=0.4, tail_confidence=1.0)
    said = " ".join(published.remarks())
    assert "no path ever forks" in said
    assert all(name in said for name in ("branch_confidence", "prune_confidence", "tail_confidence"))
    assert EchoRollout().remarks() == []
    assert "every path is pruned" in EchoRollout(confidence="probability").remarks()[0]


def test_a_published_threshold_is_a_warning_before_the_run() -> None:
    from trainer.preflight import check

    part = {"type": "echo_rollout", "branch_confidence": 1.2}
    report = check(load({"objective": {"preset": "echo-rollout", "parts": [part]}}), deep=False)
    assert any("no path ever forks" in warning.message for warning in report.warnings)


def test_echo_names_an_engine_without_likeliest_tokens() -> None:
    forest = Forest(1, samples=4)
    forest.generate = lambda request: Generation(request.id, [5], [-1.0], [1.0], "stop")  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="needs the likeliest tokens"):
        forest.play(EchoRollout().strategy(forest.scene(), Step()))


def test_every_branching_part_is_a_rollout_that_names_its_paper() -> None:
    for name in ("cure", "etmr", "eptree", "echo_rollout", "rose"):
        assert (PARTS[name].stage, bool(PARTS[name].paper)) == ("rollout", True)
