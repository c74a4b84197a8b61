"""The figures of an evaluation, by hand and against counting every draw."""

from __future__ import annotations

import itertools
import random

import pytest

from trainer.evaluation_metrics import avg_at_k, distinct_right, maj_at_k, pass_at_k, summary


@pytest.fixture
def prompts() -> list[list[tuple[bool | None, str | None]]]:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    return [[(rng.choice([True, False]), rng.choice("abc")) for _ in range(rng.randint(1, 7))] for _ in range(20)]


def test_pass_at_k_equals_counting_every_draw_of_k(prompts: list) -> None:
    for k in range(1, 8):
        shares = []
        for samples in prompts:
            draws = list(itertools.combinations([right for right, _ in samples], k))
            if draws:
                shares.append(sum(map(any, draws)) / len(draws))
        expected = sum(shares) / len(shares) if shares else None
        assert pass_at_k(prompts, k) == (expected if expected is None else pytest.approx(expected, abs=1e-12))


def test_pass_at_1_is_avg(prompts: list) -> None:
    assert pass_at_k(prompts, 1) == pytest.approx(avg_at_k(prompts), abs=1e-12)


def test_figures_by_hand() -> None:
    first = [(True, "1+2"), (False, "9"), (True, "2+1"), (True, "1+2")]
    second = [(False, "7"), (True, "8"), (None, None), (False, None)]
    assert avg_at_k([first, second]) == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert pass_at_k([first, second], 2) == pytest.approx((1 + (1 - 1 / 3)) / 2)
    assert maj_at_k([first, second]) == 0.5  # 1+2 wins; 7 and 8 tie and 7 came first
    assert distinct_right([first, second]) == 1.5


def test_ties_are_broken_by_the_first_seen_answer() -> None:
    assert maj_at_k([[(True, "a"), (False, "b"), (False, "b"), (True, "a")]]) == 1.0
    assert maj_at_k([[(False, "b"), (True, "a"), (True, "a"), (False, "b")]]) == 0.0


def test_no_answer_cannot_win_the_vote() -> None:
    assert maj_at_k([[(False, None), (False, None), (True, "a")]]) == 1.0
    assert maj_at_k([[(False, None)]]) == 0.0


def test_invalid_samples_and_short_prompts_are_left_out() -> None:
    invalid = [(None, None), (None, "a")]
    assert avg_at_k([invalid]) is None
    assert avg_at_k([invalid, [(True, "a")]]) == 1.0
    assert pass_at_k([[(True, "a"), (None, None)], [(False, "a"), (False, "b")]], 2) == 0.0


def test_summary_names_its_figures() -> None:
    assert summary([[(True, "a")] * 6]) == {
        "avg@6": 1.0, "pass@1": 1.0, "pass@2": 1.0, "pass@4": 1.0, "pass@6": 1.0, "maj@6": 1.0, "distinct@6": 1.0
    }  # fmt: skip
    assert summary([]) == {}
