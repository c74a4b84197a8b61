"""What each reward pays for, and what hostile completions get."""

from __future__ import annotations

import pytest

from trainer.config import load
from trainer.errors import ConfigError
from trainer.rewards import REWARDS, Reward
from trainer.rewards.exact import ExactReward
from trainer.rewards.format import FormatReward
from trainer.rewards.math_guard import refusal
from trainer.rewards.math_verify import MathVerifyReward
from trainer.rewards.numeric import NumericReward
from trainer.rewards.pool import RewardPool
from trainer.rewards.regex import RegexReward
from trainer.rewards.scoring import score_sample
from trainer.tasks.base import Row
from trainer.tasks.dataset import Dataset

TASK = Dataset()


def score(reward: Reward, answer: str, completion: str) -> float | None:
    return reward.score(TASK, Row("k", "p", answer), completion)


@pytest.mark.parametrize(
    ("options", "answer", "completion", "expected"),
    [
        ({}, "72", "8 * 9 = 72.", 1.0),
        ({}, "72", "72 or 73", 0.0),
        ({}, "#### 1,072", "it is 1072", 1.0),
        ({}, "0.5", "1/2", 1.0),
        ({}, "72", "none", 0.0),
        ({}, "none", "72", None),
        ({"absolute": 0.1}, "3.14159", "3.2", 1.0),
        ({"absolute": 0, "relative": 0.01}, "100", "101", 1.0),
        ({"absolute": 0, "relative": 0.001}, "100", "101", 0.0),
        ({"boxed": True}, "72", "\\boxed{72} and 73", 1.0),
        ({"boxed": True}, "72", "72", 0.0),
        ({}, "72", "9" * 5000, 0.0),
        ({}, "72", "1e9999", 0.0),
    ],
)
def test_numeric(options: dict, answer: str, completion: str, expected: float | None) -> None:
    assert score(NumericReward(**options), answer, completion) == expected


@pytest.mark.parametrize(
    ("options", "answer", "completion", "expected"),
    [
        ({}, "12", "so 12\n", 1.0),
        ({}, "12", "so 12 it is", 0.0),
        ({"pattern": r"\d+"}, "12", "11 12", 1.0),
        ({"pattern": r"\d+", "which": "first"}, "12", "11 12", 0.0),
        ({"pattern": r"(?i)answer:\s*(\w+)"}, "yes", "ANSWER: yes", 1.0),
        ({"pattern": r"^ok$", "compare": False}, "", "ok", 1.0),
        ({"pattern": r"(a)?b"}, "a", "b", 0.0),
    ],
)
def test_regex(options: dict, answer: str, completion: str, expected: float) -> None:
    assert score(RegexReward(**options), answer, completion) == expected


def test_a_broken_pattern_names_its_field() -> None:
    with pytest.raises(ConfigError, match=r"pattern: this is no regular expression"):
        load({"rewards": [{"type": "regex", "pattern": "("}]})


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a</think> <answer>\\boxed{1}</answer>", 1.0),
        ("<answer>\\boxed{1}</answer><think>a</think>", 0.0),
        ("<think>a<answer>\\boxed{1}</answer></think>", 0.0),
        ("<think>a</think><answer>1</answer>", 0.0),
        ("<think>a</think><think>b</think><answer>\\boxed{1}</answer>", 0.0),
        ("<think>" * 1000, 0.0),
        ("", 0.0),
    ],
)
def test_format(completion: str, expected: float) -> None:
    assert score(FormatReward(tags=["think", "answer"], boxed=True), "", completion) == expected


def test_form_is_paid_only_where_the_answer_is_right() -> None:
    gated = [FormatReward(boxed=True, weight=0.5), ExactReward()]
    answer = Row("k", "p", "\\boxed{1}")
    assert score_sample(TASK, gated, answer, "\\boxed{1}").parts == {"format": 1.0, "exact": 1.0}
    assert score_sample(TASK, gated, answer, "\\boxed{2}").reward == 0.0
    free = [FormatReward(boxed=True, weight=0.5, only_if_right=False), ExactReward()]
    assert score_sample(TASK, free, answer, "\\boxed{2}").reward == 0.5
    alone = [FormatReward(boxed=True)]  # then the task's own check is the gate
    assert score_sample(TASK, alone, answer, "\\boxed{1}").reward == 1.0
    assert score_sample(TASK, alone, answer, "\\boxed{2}").reward == 0.0


MATHS = [
    ("1/2", "\\boxed{0.5}", 1.0),
    ("\\frac{1}{2}", "so $\\frac{2}{4}$", 1.0),
    ("\\frac{1}{2}", "\\(\\frac{2}{4}\\)", 1.0),
    ("#### 72", "the answer is 72.", 1.0),
    ("x+1", "\\boxed{1+x}", 1.0),
    ("(x+1)^2", "\\boxed{x^2+2x+1}", 1.0),
    ("[0,1)", "\\boxed{[0,1)}", 1.0),
    ("[0,1)", "\\boxed{[0,1]}", 0.0),
    ("3", "\\boxed{3} or \\boxed{4}", 0.0),
    ("3", "no idea", 0.0),
    ("", "\\boxed{3}", None),
    ("3", "\\boxed{9**9**9**9}", 0.0),
    ("3", "\\boxed{((9**9)**9999)**9999}", 0.0),
    ("3", "\\boxed{" + "9" * 61 + "}", 0.0),
    ("3", "\\boxed{3!!!!!!!}", 0.0),
    ("3", "\\boxed{" + "(" * 60 + "3" + ")" * 60 + "}", 0.0),
    ("3", "\\boxed{__import__('os')._exit(1)}", 0.0),
]


def test_mathematics_in_a_child_with_what_the_guard_cannot_foresee() -> None:
    hang = ("3", "\\boxed{\\binom{100000000}{50000000}}", None)  # a number with thirty million digits
    cases = [*MATHS[:5], hang, *MATHS[5:]]
    with RewardPool(TASK, [MathVerifyReward()], deadline_seconds=3.0) as pool:
        scored = pool.score([Row("k", "p", answer) for answer, _, _ in cases], [case[1] for case in cases])
    assert [sample.reward for sample in scored] == [expected for _, _, expected in cases]
    assert (pool.counts["crashes"], pool.counts["unscored"]) == (0, 1)
    assert pool.counts["timeouts"] + pool.counts["errors"] == 1  # memory or time, whichever ends first


def test_mathematics_first_box_and_required_box() -> None:
    both = "\\boxed{3} or \\boxed{4}"
    assert score(MathVerifyReward(box="first"), "3", both) == 1.0
    assert score(MathVerifyReward(box="last"), "3", both) == 0.0
    assert score(MathVerifyReward(require_box=True), "3", "3") == 0.0
    assert score(MathVerifyReward(), "3", "3") == 1.0


@pytest.mark.parametrize(
    "answer",
    ["e^{-x^2}", "x^{10}+1", "2^{2^3}", "10^{-6}", "\\frac{10!}{3!}", "2^{100}", "\\left(\\frac{a+b}{2}\\right)^{12}"],
)
def test_the_guard_lets_answers_pass(answer: str) -> None:
    assert refusal(answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^9}}",
        "9^9^9",
        "(((9^{99})^{99})^{99})",
        "}9^{9^{9^9}}",
        "10^{100000}",
        "2^{9^{12}}",
        "(3!)!",
        "3! !",
        "200!",
    ],
)
def test_the_guard_stops_towers_and_factorials(answer: str) -> None:
    assert refusal(answer) is not None


def test_a_backtracking_pattern_costs_its_sample_only() -> None:
    reward = RegexReward(pattern=r"^(a+)+$", compare=False)
    with RewardPool(TASK, [reward], deadline_seconds=1.0) as pool:
        scored = pool.score([Row("k", "p", "")] * 3, ["aaa", "a" * 60 + "b", "b"])
    assert [(sample.reward, sample.reason) for sample in scored] == [(1.0, ""), (None, "timeout"), (0.0, "")]


def test_every_reward_can_be_chosen_with_its_defaults() -> None:
    config = load({"rewards": [{"type": name} for name in REWARDS]})
    assert [reward["type"] for reward in config.model_dump()["rewards"]] == list(REWARDS)
