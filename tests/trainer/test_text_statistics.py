"""What is read off a completion's text lands on the right tokens."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch

from trainer.completion import Completion
from trainer.policy import Trajectory
from trainer.rewards.scoring import Scored
from trainer.tasks import Row
from trainer.text_statistics import common_words, completion_facts, token_statistics


def completion(pieces: list[str], index: int = 0, group: int = 0, answer: str | None = None, right: float | None = 1.0):
    """Return a completion whose tokens have these texts."""
    offsets, at = [], 0
    for piece in pieces:
        offsets.append(at)
        at += len(piece.encode())
    return Completion(
        index=index, group=group, sample=index, auxiliary=False, row=Row("r", "", ""),
        tokens=Trajectory((1,), tuple(range(len(pieces)))), engine_logprob=[], finish_reason="stop",
        text="".join(pieces), offsets=offsets, scored=Scored(right, {"task": right}, canonical=answer),
    )  # fmt: skip


def planning(pieces: list[str], *phrases: str) -> list[float]:
    return token_statistics(["planning"], [completion(pieces)], {"phrases": list(phrases)}).flatten().tolist()


def test_a_phrase_marks_every_token_it_touches() -> None:
    pieces = ["Süß: ", "let", " us", " che", "ck", " it"]
    assert planning(pieces, "let us check", "it is") == [0, 1, 1, 1, 1, 0]


def test_phrases_are_whole_words_in_any_case() -> None:
    assert planning(["LET", " US", " sublet us"], "let us") == [1, 1, 0]
    assert planning(["a.b", " axb"], "a.b") == [1, 0]  # no pattern language


def test_a_trigger_marks_the_token_it_begins_in() -> None:
    found = token_statistics(["trigger"], [completion(["so wa", "it", ", but"])], {"triggers": ["wait", "but"]})
    assert found.flatten().tolist() == [1, 0, 1]


def test_both_statistics_at_once_and_completions_without_tokens() -> None:
    both = [completion(["but"]), completion([], index=1)]
    found = token_statistics(["planning", "trigger"], both, {"phrases": ["none"], "triggers": ["but"]})
    assert found.tolist() == [[0, 1]]


def test_the_end_of_thinking_is_the_token_that_completes_the_last_delimiter() -> None:
    rows = [completion(["a", "</th", "ink>", "b"]), completion(["a"], index=1), completion([], index=2)]
    facts = completion_facts(["think_end"], rows, {"delimiter": "</think>"})
    assert facts.flatten().tolist() == [2, -1, -1]


def test_equal_answers_share_a_number_within_their_group() -> None:
    answers = [(0, "7"), (0, None), (0, "8"), (0, "7"), (1, "8")]
    rows = [completion(["x"], index=i, group=group, answer=text) for i, (group, text) in enumerate(answers)]
    assert completion_facts(["answer"], rows, {}).flatten().tolist() == [0, -1, 1, 0, 0]


def test_right_wrong_and_ungraded() -> None:
    rows = [completion(["x"], index=i, right=score) for i, score in enumerate((1.0, 0.0, None))]
    facts = completion_facts(["correct", "trajectory", "turn"], rows, {})
    assert torch.equal(facts, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 2, 0]]))


@pytest.mark.parametrize(
    ("answer", "question", "expected"),
    [
        (None, "What is 2 + 2?", 0),
        ("4", "What is 2 + 2?", 0),
        ("The Sun", "how far is the sun", 1),
        ("far and the sun", "how far is the sun", 0),  # three of four words in order are not above 0.8
        ("how far is a sun or so", "how far is the sun", 0),
        ("how far is the warm sun", "how far is the sun", 1),  # five of six
    ],
)
def test_an_answer_that_repeats_the_question_is_told(answer: str | None, question: str, expected: float) -> None:
    found = replace(completion(["x"], answer=answer), row=Row("r", question, ""))
    assert completion_facts(["copied"], [found], {}).flatten().tolist() == [expected]


def test_common_words_agree_with_the_table_method() -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(50):
        left, right = (dice.choices("abc", k=dice.randrange(8)) for _ in range(2))
        table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
        for i, j in itertools.product(range(len(left)), range(len(right))):
            longer = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if left[i] == right[j] else longer
        assert common_words(left, right) == table[-1][-1]
