"""Starting an engine of vLLM inside this process, and what can be wrong with that, one sentence each."""

from __future__ import annotations

import gc
import os
import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.errors import ConfigError, ResourceError, TrainerError
from trainer.rollout.settings import VllmConfig
from trainer.rollout.vllm.forecast import FIELD, INSTALL

# read by vLLM when it is imported or started
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # everything in this process: weights and logits are within reach
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the tap stands where V1 samples
}
PREFERRED = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # the tap draws; FlashInfer's would want nvcc when it is first tried
}
BATCHED = 2048  # tokens that vLLM computes in one step unless told otherwise; never fewer than sequences
IEEE = {"TRITON_F32_DEFAULT": "ieee"}  # else vLLM's attention in float32 multiplies in TF32 on a GPU
# how vLLM words a model it cannot run, and a cache that is too small
UNKNOWN = re.compile(r"[Aa]rchitectures? \W*(\w+)\W* (?:is|are|was) (?:not )?supported")
CACHE = re.compile(r"([\d.]+ GiB) KV cache is needed, which is larger than the available KV cache memory \(([^)]+)")


class Core:
    """A started engine of vLLM and its model runner."""

    live = 0  # cores of this process; they share vLLM's process groups
    owner = False  # whether torch's process group came with vLLM, not from the trainer

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        Core.live += 1
        self.worker = llm.model_executor.driver_worker.worker
        self.runner = self.worker.model_runner

    @property
    def model(self) -> Any:
        return self.runner.get_model()

    def close(self) -> None:
        """End the engine and free its memory; a process group of the trainer's stays.

        In place of vLLM's own shutdown, which destroys torch's process group whoever made it. The compiled model is let
        go of first: what still held weights would keep their pool, and a process can have one such pool at a time.
        """
        from vllm.distributed import parallel_state

        client, compiled = self.llm.engine_core, getattr(self.llm, "_finalizer", None)
        client._finalizer.detach()
        if compiled is not None:
            compiled()
        client.engine_core.structured_output_manager.clear_backend()
        client.engine_core.model_executor.shutdown()
        client.engine_core.scheduler.shutdown()
        self.llm = self.worker = self.runner = client = None
        Core.live -= 1
        if not Core.live:
            parallel_state.destroy_model_parallel()
            if Core.owner:
                parallel_state.destroy_distributed_environment()
        gc.unfreeze()  # vLLM freezes what it loaded; it could not be collected otherwise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def start(path: Path, settings: VllmConfig, *, dtype: str, device: torch.device, longest: int) -> Core:
    """Return an engine over the model in a folder, with random weights: the trainer's are put in before its first use.

    `longest` is the number of tokens of the longest sequence. Raises ConfigError where vLLM is missing or cannot run
    the model, ResourceError where memory does not suffice.
    """
    os.environ.update(ENVIRONMENT)
    for name, value in (PREFERRED | (IEEE if dtype == "float32" else {})).items():
        os.environ.setdefault(name, value)
    engine_args, llm_engine = _imported()
    _check_heads(path, device)
    if not Core.live:
        Core.owner = not torch.distributed.is_initialized()
    wanted = options(path, settings, dtype=dtype, device=device, longest=longest)
    try:
        with undisturbed():
            return Core(llm_engine.from_engine_args(engine_args(**wanted)))
    except Exception as error:  # vLLM raises what its libraries raise
        raise refusal(error, device, longest) from error


def options(path: Path, settings: VllmConfig, *, dtype: str, device: torch.device, longest: int) -> dict[str, Any]:
    """Return the arguments of vLLM's engine (EngineArgs)."""
    found: dict[str, Any] = {
        "model": str(path), "dtype": dtype, "max_model_len": longest, "load_format": "dummy",
        "max_num_seqs": settings.max_sequences, "seed": 0, "skip_tokenizer_init": True, "generation_config": "vllm",
        "max_num_batched_tokens": settings.max_sequences if settings.max_sequences > BATCHED else None,
        "enable_prefix_caching": True, "disable_log_stats": True,
        "async_scheduling": False,  # the tap keeps its books in step with the scheduler
        "logprobs_mode": "processed_logprobs", "max_logprobs": -1,
        "distributed_executor_backend": "external_launcher" if several() else None,
    }  # fmt: skip
    if device.type != "cuda":
        return found | {"kv_cache_memory_bytes": int(settings.cache_gigabytes * 2**30), "enforce_eager": True}
    found |= {"gpu_memory_utilization": settings.memory_share, "enforce_eager": settings.enforce_eager}
    found |= {"enable_sleep_mode": settings.sleep}
    if dtype == "bfloat16":  # the trainer's logits are never rounded; vLLM's would be, to 0.06 nats at 16
        found["hf_overrides"] = {"head_dtype": "float32"}
    return found


def several() -> bool:
    """Return whether this run has several processes, each with an engine, started by torch's launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _imported() -> tuple[Any, Any]:
    try:
        with undisturbed():
            from vllm import EngineArgs, LLMEngine
    except ImportError as error:
        raise ConfigError(
            f"{FIELD}: vllm cannot be imported here ({error}); install it with {INSTALL}, or choose hf", FIELD
        ) from error
    return EngineArgs, LLMEngine


def _check_heads(path: Path, device: torch.device) -> None:
    """vLLM's attention on a CPU knows some head sizes only, and says so no earlier than in the first step."""
    if device.type == "cuda":
        return
    from transformers import AutoConfig
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    config = AutoConfig.from_pretrained(path).get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    known = CPUAttentionBackend.get_supported_head_sizes()
    if size not in known:
        raise ConfigError(
            f"{FIELD}: on a CPU vLLM runs attention heads of {', '.join(map(str, known))}, and this model's have "
            f"{size}; choose hf, or a model such as builtin:countdown-tiny-llama",
            FIELD,
        )


def refusal(error: Exception, device: torch.device, longest: int) -> TrainerError:
    """Return what the trainer says of an error that vLLM raised while it started for sequences of `longest` tokens."""
    text = " ".join(str(error).split())
    cache = "sampling.vllm.memory_share" if device.type == "cuda" else "sampling.vllm.cache_gigabytes"
    if isinstance(error, TrainerError):
        return error
    if unknown := UNKNOWN.search(text):
        return ConfigError(f"{FIELD}: vLLM has no implementation of {unknown[1]}; choose hf", FIELD)
    if "KV cache" in text or "kv cache" in text or "No available memory" in text:
        sizes = CACHE.search(text)
        told = f" (it takes {sizes[1]} and there are {sizes[2]})" if sizes else ""
        return ResourceError(
            f"{cache}: vLLM's key-value cache does not hold one sequence of {longest} tokens{told}; raise it, or lower "
            "sampling.max_prompt_tokens or sampling.max_completion_tokens",
            cache,
        )
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "memory" in text.lower():
        return ResourceError(f"vLLM does not get the memory it wants ({text[:300]}); lower {cache}")
    return ConfigError(f"{FIELD}: vLLM did not start ({type(error).__name__}: {text[:300]}); choose hf", FIELD)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put back what vLLM changes in the process it starts in: random states, threads, number formats, excepthook."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    setter, threads, dtype = torch.set_num_threads, torch.get_num_threads(), torch.get_default_dtype()
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    hook = sys.excepthook  # torch.distributed puts its rank in front of every line
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)
        torch.set_num_threads = setter  # on a CPU vLLM replaces it by a function that does nothing
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        sys.excepthook = hook
