"""What the likeliest tokens say of an entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rollout.vllm.bounds import interval

logits = st.lists(st.floats(-12, 12), min_size=2, max_size=40)


@given(logits=logits, known=st.integers(1, 40))
def test_the_true_entropy_lies_between_the_bounds(logits, known):
    logp = np.array(logits) - np.logaddexp.reduce(logits)
    low, high = interval(sorted(logp, reverse=True)[:known], len(logits))
    assert low - 1e-6 <= -(np.exp(logp) * logp).sum() <= high + 1e-6


@given(logits=logits)
def test_all_tokens_leave_nothing_open(logits):
    logp = np.array(logits) - np.logaddexp.reduce(logits)
    low, high = interval(list(logp), len(logits))
    assert high - low < 1e-6


def test_the_bounds_are_attained():
    half = math.log(0.5)
    low, high = interval([half], 5)
    assert low == pytest.approx(math.log(2))  # the rest on one other token, which may be as likely
    assert high == pytest.approx(math.log(2) + 0.5 * math.log(4))  # the rest spread over all four
    assert interval([0.0, -math.inf], 5) == (0.0, 0.0)
