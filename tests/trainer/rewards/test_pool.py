"""The pool goes on whatever one sample does to its child."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.trainer.rewards.hostile import Obedient, Unprepared
from trainer.errors import ConfigError
from trainer.rewards import pool as pool_module
from trainer.rewards.exact import ExactReward
from trainer.rewards.pool import RewardPool
from trainer.rewards.task import TaskReward
from trainer.tasks.base import Row
from trainer.tasks.countdown import Countdown

TASK = Countdown()


def row(answer: str) -> Row:
    return Row(key=answer, prompt="", answer=answer)


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


def test_hostile_samples_are_invalid_and_the_others_keep_their_scores_in_order(rng: random.Random) -> None:
    expected = {
        "sleep": ("timeout", "timeouts"),
        "spin": ("timeout", "timeouts"),
        "eat": ("error: MemoryError", "errors"),
        "exit": ("crash", "crashes"),
        "raise": ("error: ValueError: no such thing", "errors"),
        "nan": ("not finite", "unscored"),
        "none": ("no score", "unscored"),
    }
    completions = [*expected, "print", *(str(rng.randrange(5)) for _ in range(60))]
    rng.shuffle(completions)
    answers = [str(rng.randrange(5)) for _ in completions]
    with RewardPool(TASK, [Obedient()], workers=2, deadline_seconds=1.0) as pool:
        scored = pool.score([row(answer) for answer in answers], completions)
    for completion, answer, sample in zip(completions, answers, scored, strict=True):
        if completion in expected:
            assert sample.reward is None
            assert sample.reason.startswith(expected[completion][0])
        else:
            assert (sample.reward, sample.reason) == (float(completion == answer), "")
    assert dict(pool.counts) == {"samples": 68, "timeouts": 2, "crashes": 1, "errors": 2, "unscored": 2}


def test_a_reward_that_always_hangs_costs_a_call_few_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "HANGS", 3)
    answers = ["sleep", "sleep", "1", *["sleep"] * 40]
    with RewardPool(TASK, [Obedient()], deadline_seconds=0.3) as pool:
        scored = pool.score([row("1")] * len(answers), answers)
        assert [sample.reward for sample in scored] == [None, None, 1.0, *[None] * 40]
        assert [sample.reason for sample in scored].count("timeout") == 5
        assert all("not tried" in sample.reason for sample in scored[6:])
        assert pool.counts["timeouts"] == 42
        assert pool.score([row("1")], ["1"])[0].reward == 1.0  # the next call tries again


def test_prints_of_a_reward_do_not_garble_the_answers() -> None:
    with RewardPool(TASK, [Obedient()]) as pool:
        assert [sample.reward for sample in pool.score([row("1")] * 3, ["1", "print", "1"])] == [1.0, 0.0, 1.0]


def test_a_child_sees_no_secret_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "hf_secret")
    with RewardPool(TASK, [Obedient()]) as pool:
        assert pool.score([row("")], ["secret"])[0].reward == 0.0


def test_children_are_recycled_and_end_with_the_pool() -> None:
    with RewardPool(TASK, [Obedient()], recycle_after=10) as pool:
        seen = [pool.score([row("")] * 5, ["pid"] * 5)[0].reward for _ in range(4)]
        assert seen[0] == seen[1] != seen[2] == seen[3]
        pids = [worker.process.pid for worker in pool._workers]
    for pid in [*pids, int(seen[0] or 0), int(seen[2] or 0)]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_child_killed_between_calls_costs_no_sample() -> None:
    with RewardPool(TASK, [Obedient()]) as pool:
        pid = int(pool.score([row("")], ["pid"])[0].reward or 0)
        os.kill(pid, signal.SIGKILL)
        pool._workers[0].process.wait()
        assert [sample.reward for sample in pool.score([row("1")] * 2, ["1", "2"])] == [1.0, 0.0]
        assert pool.counts["crashes"] == 0


def test_signals_meant_for_the_trainer_do_not_end_a_child() -> None:
    with RewardPool(TASK, [Obedient()]) as pool:
        pid = int(pool.score([row("")], ["pid"])[0].reward or 0)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        assert pool.score([row("")], ["pid"])[0].reward == pid


def test_a_child_whose_pool_was_killed_ends_by_itself() -> None:
    pool = RewardPool(TASK, [Obedient()], deadline_seconds=0.1)
    pool.score([row("")], ["1"])
    worker = pool._workers[0]
    worker.give([0], [[{"key": "", "prompt": "", "answer": "", "extra": {}}, "spin"]])
    assert worker.process.wait(timeout=60) == -signal.SIGALRM
    pool.close()


def test_a_part_that_cannot_be_prepared_is_a_config_error() -> None:
    with RewardPool(TASK, [Unprepared()]) as pool, pytest.raises(ConfigError, match="pip install isentrope"):
        pool.score([row("")], ["1"])


def test_parts_are_weighted_named_and_measured() -> None:
    rewards = [ExactReward(weight=2.0), ExactReward(weight=-0.5, ignore_case=True), Obedient(weight=0.0)]
    with RewardPool(TASK, rewards) as pool:
        right, off, odd = pool.score([row("A")] * 3, ["A", "a", "nan"])
    assert (right.reward, right.parts) == (1.5, {"exact": 1.0, "exact_2": 1.0, "obedient": 1.0})
    assert (off.reward, off.parts) == (-0.5, {"exact": 0.0, "exact_2": 1.0, "obedient": 0.0})
    assert (odd.reward, odd.parts) == (0.0, {"exact": 0.0, "exact_2": 0.0, "obedient": None})  # only measured


def test_inline_and_child_agree(rng: random.Random) -> None:
    rows = [rng.choice(TASK.rows("train", 0)) for _ in range(300)]
    completions = ["{}+{}-{}".format(*rng.sample(row.extra["digits"], 3)) for row in rows]
    completions[7] = "\ud800\x00\u202e"
    with RewardPool(TASK, [TaskReward()]) as inline, RewardPool(TASK, [TaskReward(), Obedient(weight=0.0)]) as child:
        assert inline.inline
        assert not child.inline
        for one, other in zip(inline.score(rows, completions), child.score(rows, completions), strict=True):
            assert (one.reward, one.canonical) == (other.reward, other.canonical)


def test_an_empty_batch_is_fine() -> None:
    with RewardPool(TASK, [Obedient()]) as pool:
        assert pool.score([], []) == []


if __name__ == "__main__":  # how long 512 small samples take: python -m tests.trainer.rewards.test_pool
    with RewardPool(TASK, [Obedient()]) as timed:
        timed.score([row("1")], ["1"])
        for _ in range(3):
            start = time.perf_counter()
            timed.score([row("1")] * 512, ["1"] * 512)
            print(f"{1000 * (time.perf_counter() - start):.1f} ms")
