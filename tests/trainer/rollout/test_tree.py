"""The tree of a prompt's completions: bounds, places, texts and cuts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.rollout.forest import TEXTS, VOCABULARY, told
from trainer.errors import ConfigError
from trainer.rollout import Done, GenRequest
from trainer.rollout.tree import Tree, cut, pieces


def node(index: int, ids: tuple[int, ...], parent: int | None = None, at: int | None = None, **fields) -> Done:
    prefix = ids[:at] if at else ()
    request = GenRequest(index, 0, index, (1,), 1, 99, prefix_ids=prefix, parent=parent, fork_at=at)
    numbers = [float(token) for token in ids]
    return told(
        ids, fields.pop("logprob", [-value for value in numbers]), fields.pop("entropy", numbers), request=request
    )


def test_a_tree_knows_who_descends_from_whom() -> None:
    tree = Tree(budget=5, depth=2)
    for one in (node(0, (3, 5, 4)), node(1, (6, 7)), node(2, (3, 5, 9), 0, 2), node(3, (3, 5, 9, 2), 2, 3)):
        tree.add(one)
    assert (tree.roots, tree.under(0), tree.under(1), tree.left) == ([0, 1], [0, 2, 3], [1], 1)
    assert tree.depths == {0: 0, 1: 0, 2: 1, 3: 2}
    assert tree.taken() == {(0, 2), (2, 3)}
    assert [list(tree.own(index)) for index in range(4)] == [[0, 1, 2], [0, 1], [], []]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (node(0, (1,)), "already"),
        (node(7, (3, 9), 6, 1), "not in the tree"),
        (node(7, (4, 9), 0, 1), "does not begin"),
        (node(7, (3, 5, 8, 1), 2, 3), "2 forks deep"),
    ],
)
def test_what_breaks_a_tree_is_refused(bad: Done, why: str) -> None:
    tree = Tree(budget=4, depth=1)
    for one in (node(0, (3, 5)), node(2, (3, 5, 8), 0, 2)):
        tree.add(one)
    with pytest.raises(ValueError, match=why):
        tree.add(bad)


def test_a_full_tree_takes_no_more() -> None:
    tree = Tree(budget=1, depth=1)
    tree.add(node(0, (3, 5)))
    with pytest.raises(ValueError, match="one too many"):
        tree.add(node(1, (3, 5)))
    with pytest.raises(ValueError, match="no room"):
        Tree(budget=0, depth=1)


def test_places_are_the_highest_unused_ones_of_the_branch_itself() -> None:
    tree = Tree(budget=9, depth=1)
    tree.add(node(0, (2, 9, 5, 9)))
    tree.add(node(1, (2, 9, 8, 4), 0, 2))  # its token 2 is the fork, its tokens 0 and 1 are the parent's
    tree.add(node(2, (2, 3), 0, 1))
    found = [(place.node, place.at) for place in tree.places(tree.nodes, "entropy", 9)]
    assert found == [(0, 3), (1, 3), (0, 0)]  # tokens 1 and 2 of the first have been forked at
    assert [(place.node, place.at) for place in tree.places([0], "entropy", 1)] == [(0, 3)]


def test_surprisal_and_entropy_rank_differently() -> None:
    tree = Tree(budget=1, depth=0)
    tree.add(node(0, (1, 2, 3), logprob=[-5.0, -1.0, -2.0], entropy=[0.1, 0.2, 0.3]))
    assert [place.at for place in tree.places([0], "surprisal", 3)] == [0, 2, 1]
    assert [place.at for place in tree.places([0], "entropy", 3)] == [2, 1, 0]


@pytest.mark.parametrize("measure", ["entropy", "surprisal"])
def test_rounding_does_not_choose_between_completions_of_the_same_tokens(measure: str) -> None:
    """A batch rounds each row otherwise: the second one seems a little higher, and is no more so."""
    tree, rounding = Tree(budget=2, depth=0), 1e-7
    tree.add(node(0, (4, 7, 5), entropy=[0.1, 0.7, 0.5], logprob=[-0.1, -0.7, -0.5]))
    higher = [0.1, 0.7 + rounding, 0.5 + rounding]
    tree.add(node(1, (4, 7, 6), entropy=higher, logprob=[-value for value in higher]))
    found = tree.places(tree.nodes, measure, 4)
    assert [(place.node, place.at) for place in found[:2]] == [(0, 1), (1, 1)]
    # the last tokens differ, and so do their surprisals; the entropy in front of them is one and the same
    last = [(0, 2), (1, 2)] if measure == "entropy" else [(1, 2), (0, 2)]
    assert [(place.node, place.at) for place in found[2:]] == last


def test_numbers_that_are_not_finite_are_no_places() -> None:
    tree = Tree(budget=1, depth=0)
    tree.add(node(0, (1, 2, 3), entropy=[float("nan"), float("inf"), 0.0]))
    assert [place.at for place in tree.places([0], "entropy", 3)] == [2]


def test_an_engine_without_entropy_is_named() -> None:
    tree, blind = Tree(budget=2, depth=0), node(0, (1, 2))
    tree.add(replace(blind, generation=replace(blind.generation, estimator="none")))
    with pytest.raises(ConfigError, match="gives none; choose hf"):
        tree.places([0], "entropy", 1)
    assert tree.places([0], "surprisal", 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12), st.data())
def test_a_cut_completion_is_its_own_beginning(ids: list[int], data: st.DataObject) -> None:
    whole = node(0, tuple(ids))
    length = data.draw(st.integers(1, len(ids)))
    short = cut(whole, length)
    assert pieces(whole) == [TEXTS[index] for index in ids]
    assert (short.ids, short.text) == (tuple(ids[:length]), "".join(TEXTS[index] for index in ids[:length]))
    assert pieces(short) == pieces(whole)[:length]
    assert len(short.logprob) == len(short.entropy) == len(short.generation.ids) == length
    assert short.generation.finish_reason == "pruned"


def test_a_branch_that_is_cut_keeps_its_prefix() -> None:
    branch = node(1, (2, 9, 8, 4), 0, 2)
    branch = replace(branch, generation=replace(branch.generation, ids=[8, 4], moments={"sum_p2": [0.5, 0.25]}))
    short = cut(branch, 3)
    assert (short.ids, short.generation.ids, short.generation.moments) == ((2, 9, 8), [8], {"sum_p2": [0.5]})
