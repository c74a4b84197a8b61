"""Puzzles of reasoning-gym, and those whose check would run the model's text."""

from __future__ import annotations

import sys

import pytest

from trainer.errors import ConfigError
from trainer.rewards.pool import RewardPool
from trainer.rewards.task import TaskReward
from trainer.tasks.reasoning_gym import EVALUATES, ReasoningGym, _puzzles


@pytest.mark.parametrize("name", sorted(EVALUATES))
def test_puzzles_that_evaluate_the_answer_are_refused(name: str) -> None:
    for look in (lambda task: task.check(), lambda task: task.rows("train", 0), lambda task: task.prepare()):
        with pytest.raises(ConfigError, match="runs the model's text as code") as caught:
            look(ReasoningGym(name=name))
        assert caught.value.field == "task.name"


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setattr("trainer.tasks.reasoning_gym.find_spec", lambda name: None)
    _puzzles.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install isentrope\[tasks\]"):
        ReasoningGym().rows("train", 0)


def test_an_unknown_puzzle_suggests_others() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match="did you mean leg_counting"):
        ReasoningGym(name="leg_count").rows("train", 0)


def test_rows_are_split_and_graded_in_a_child() -> None:
    pytest.importorskip("reasoning_gym")
    task = ReasoningGym(size=40, held_out=0.25)
    train, held_out = task.rows("train", 3), task.rows("held_out", 3)
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    assert len(held_out) == round(0.25 * (len(train) + len(held_out)))
    row = train[0]
    with RewardPool(task, [TaskReward()]) as pool:
        completions = [f"<answer>7</answer> no, <answer>{row.answer}</answer>", row.answer, "", "<answer>" * 1000]
        scored = pool.score([row] * 4, completions)
    assert [sample.reward for sample in scored] == [1.0, 1.0, 0.0, 0.0]
    assert scored[0].canonical == row.answer
