"""Advantages of a tree's segments: by hand, against plain recursion on grown trees, and what must not matter."""

from __future__ import annotations

import random

import pytest
import torch

from tests.trainer.rollout.forest import Forest
from trainer.batch import TokenBatch
from trainer.objectives import Step
from trainer.objectives.branching.rose import Rose
from trainer.objectives.branching.tree_advantage import TreeAdvantage
from trainer.objectives.branching.treerl import EpTree

from .batches import doubles, hand_batch


def batch_of(lengths, reward, parent, fork_at, group=None, **fields) -> TokenBatch:
    extra = {
        "trajectory": torch.arange(len(lengths)).double(),
        "parent": doubles(*parent),
        "fork_at": doubles(*fork_at),
    }
    return hand_batch(lengths, reward, group, extra=extra, **fields)


def tokens(part: TreeAdvantage, batch: TokenBatch) -> list[list[float]]:
    found = part.normalise(batch, Step())
    return [found[batch.sequence == row].tolist() for row in range(batch.sequences)]


def test_segments_by_hand() -> None:
    # B leaves A behind two tokens, C is alone: V(A, B) = 1/2, of the group 1/3
    batch = batch_of([4, 5, 3], [1.0, 0.0, 0.0], [-1, 0, -1], [0, 2, 0])
    shared = (1 / 6 + 1 / 6) / 2**0.5
    a, b, c = tokens(TreeAdvantage(), batch)
    assert a == pytest.approx([shared] * 2 + [1 / 2 + 2 / 3] * 2)
    assert b == pytest.approx([shared] * 2 + [-1 / 2 - 1 / 3] * 3)
    assert c == pytest.approx([-2 / 3] * 3)
    a, b, c = tokens(TreeAdvantage(root=0.0, spread=0.0), batch)
    assert a == pytest.approx([1 / 6] * 2 + [1 / 2] * 2)
    assert b == pytest.approx([1 / 6] * 2 + [-1 / 2] * 3)
    assert c == pytest.approx([-1 / 3] * 3)


def test_what_shares_nothing_gets_its_reward_against_the_group() -> None:
    rewards = [1.0, 0.25, 0.0, 1.0]
    batch = batch_of([1, 2, 3, 1], rewards, [-1] * 4, [0] * 4, group=[0, 0, 0, 1])
    found = tokens(TreeAdvantage(root=0.5), batch)
    mean = sum(rewards[:3]) / 3
    assert [row[0] for row in found] == pytest.approx([1.5 * (r - mean) for r in rewards[:3]] + [0.0])


def test_ungraded_completions_have_no_value_and_still_hold_the_tree_together() -> None:
    # C leaves B, which leaves A; B has no reward
    batch = batch_of([3, 3, 3, 2], [1.0, float("nan"), 0.0, 0.0], [-1, 0, 1, -1], [0, 1, 2, 0])
    a, b, c, d = tokens(TreeAdvantage(root=0.0, spread=0.0), batch)
    assert a == pytest.approx([1 / 2 - 1 / 3, 1 / 2, 1 / 2])
    assert b == [0.0] * 3
    assert c == pytest.approx([1 / 2 - 1 / 3, -1 / 2, 0.0])  # its last segment leaves only B, which says nothing
    assert d == pytest.approx([-1 / 3] * 2)


def test_equal_rewards_give_nothing() -> None:
    batch = batch_of([4, 5, 3], [0.1] * 3, [-1, 0, -1], [0, 2, 0])
    assert not any(value for row in tokens(TreeAdvantage(), batch) for value in row)


def grown(seed: int) -> tuple[TokenBatch, list[tuple[int, int]]]:
    """Return a batch of grown trees with random rewards, and (parent row, fork) of each completion."""
    dice, forest = random.Random(seed), Forest(seed, samples=9, prompts=3, max_new=8)
    part = dice.choice(
        [Rose(epsilon=0.3), EpTree(forks=2, continuations=1, rounds=2), EpTree(forks=1, continuations=3)]
    )
    picks = sorted(forest.play(part.strategy(forest.scene(), Step())), key=lambda pick: (pick.group, pick.sample))
    rows = {pick.done.request.id: row for row, pick in enumerate(picks)}
    made = [pick.done.request for pick in picks]
    forks = [(-1 if one.parent is None else rows[one.parent], one.fork_at or 0) for one in made]
    rewards = [dice.choice([0.0, 0.5, 1.0]) for _ in picks]
    lengths, groups = [len(pick.done.ids) for pick in picks], [pick.group for pick in picks]
    return batch_of(lengths, rewards, *zip(*forks, strict=True), group=groups), forks


def slowly(batch: TokenBatch, forks: list[tuple[int, int]], root: float, spread: float) -> list[list[float]]:
    """Return the advantage of each token, following every path token by token."""

    def who(row: int, at: int) -> tuple[int, int]:  # the completion that first drew a path's token
        parent, fork = forks[row]
        return who(parent, at) if at < fork else (row, at)

    length, reward, group = batch.length.tolist(), batch.reward.tolist(), batch.group.tolist()
    paths = [[who(row, at) for at in range(length[row])] for row in range(len(length))]
    found = []
    for row, path in enumerate(paths):
        members = [other for other in range(len(paths)) if group[other] == group[row]]
        through = [[other for other in members if token in paths[other]] for token in path]

        def value(those: list[int]) -> float:
            return sum(reward[other] for other in those) / len(those)

        advantages = []
        for at, those in enumerate(through):
            before = next((through[t] for t in range(at, -1, -1) if through[t] != those), members)
            gain = value(those) - value(before) + root * (value(those) - value(members))
            advantages.append(gain / len(those) ** spread)
        found.append(advantages)
    return found


@pytest.mark.parametrize("part", [TreeAdvantage(), TreeAdvantage(root=0.0, spread=0.0)])
def test_grown_trees_agree_with_following_every_path(part: TreeAdvantage) -> None:
    for _ in range(6):
        seed = random.randrange(2**31)
        print(seed)
        batch, forks = grown(seed)
        expected = slowly(batch, forks, part.root, part.spread)
        for found, row in zip(tokens(part, batch), expected, strict=True):
            assert found == pytest.approx(row, abs=1e-12)


def test_neither_order_nor_missing_context_changes_a_token_s_advantage() -> None:
    seed = random.randrange(2**31)
    print(seed)
    dice = random.Random(seed)
    batch, forks = grown(seed)
    expected = TreeAdvantage().normalise(batch, Step())
    order = dice.sample(range(batch.sequences), batch.sequences)
    learned = batch.position >= torch.tensor([fork for _, fork in forks])[batch.sequence]  # prefixes masked
    taken = torch.cat([torch.nonzero((batch.sequence == row) & learned)[:, 0] for row in order])
    place = torch.tensor([order.index(row) for row in range(batch.sequences)])
    moved = batch.replace(
        logprob=batch.logprob[taken],
        sequence=place[batch.sequence[taken]],
        position=batch.position[taken],
        extra={name: value[order] for name, value in batch.extra.items()},
        **{name: getattr(batch, name)[order] for name in ("group", "reward", "length")},
    )
    assert TreeAdvantage().normalise(moved, Step()).tolist() == pytest.approx(expected[taken].tolist(), abs=1e-12)


def test_an_empty_batch_has_no_advantage() -> None:
    assert TreeAdvantage().normalise(batch_of([], [], [], []), Step()).shape == (0,)
