"""Settings of rollouts: how completions are drawn, by which engine, and where it runs. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from trainer.part import Settings, setting
from trainer.rollout.base import SamplerSpec


class ServerConfig(Settings):
    """Generation in a process of its own: on other GPUs, on another host, or while the step before is learned."""

    enabled: bool = setting(False, help="Generate in a server process instead of inside the trainer.")
    address: str = setting(
        "",
        help="HOST:PORT of a server that somebody else runs; empty starts one with the run and ends it with the run.",
        max_length=300,
        show_if={"enabled": True},
        advanced=True,
    )
    gpus: int = setting(
        0,
        help="GPUs the server gets, leased besides the trainer's; it uses one.",
        ge=0,
        le=1,
        show_if={"enabled": True},
    )
    weights: Literal["folder", "broadcast"] = setting(
        "folder",
        help="How new weights reach the server. folder: as safetensors in the run folder, which both must see; "
        "broadcast: from memory to memory, over NCCL where both hold GPUs.",
        show_if={"enabled": True},
        advanced=True,
    )
    timeout: float = setting(
        300.0,
        help="Seconds without a single new token after which the server counts as hung.",
        unit="seconds",
        gt=0,
        le=86400,
        show_if={"enabled": True},
        advanced=True,
    )
    start_timeout: float = setting(
        900.0,
        help="Seconds the server may take to load the model.",
        unit="seconds",
        gt=0,
        le=86400,
        show_if={"enabled": True},
        advanced=True,
    )

    @field_validator("address")
    @classmethod
    def _address_is_one(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and not (
            host and port.isascii() and port.isdigit() and 0 < int(port) < 65536 and not set(value) & {*" /"}
        ):
            raise ValueError("write HOST:PORT, such as gpu7:7000, or nothing")
        return value


class VllmConfig(Settings):
    """The vllm engine: how much memory it takes and how it computes."""

    memory_share: float = setting(
        0.45,
        help="Share of a GPU's memory for the engine's weights and key-value cache; the trainer has the rest.",
        gt=0,
        lt=1,
    )
    sleep: bool = setting(
        True, help="Give the engine's GPU memory back while the trainer learns; waking takes seconds for large models."
    )
    enforce_eager: bool = setting(
        False, help="Neither compile nor capture CUDA graphs: starts sooner and samples slower.", advanced=True
    )
    cache_gigabytes: float = setting(
        1.0, help="Key-value cache on a CPU, where nothing is compiled either.", unit="GiB", gt=0, le=4096
    )
    max_sequences: int = setting(
        256, help="Completions generated at the same time.", unit="sequences", ge=1, le=65536, advanced=True
    )
    entropy: Literal["exact", "bounds"] = setting(
        "exact",
        help="exact draws with the trainer's own sampler from vLLM's logits; bounds lets vLLM draw and leaves an "
        "interval for each entropy, until the trainer scores the step: it takes neither truncation nor modifiers.",
        advanced=True,
    )


class SamplingConfig(Settings):
    """How rollouts are drawn."""

    prompts_per_step: int = setting(32, help="Different prompts in one rollout batch.", unit="prompts", ge=1, le=65536)
    samples_per_prompt: int = setting(
        16, help="Completions of each prompt: the group over which advantages are taken.", unit="samples", ge=1, le=1024
    )
    max_prompt_tokens: int = setting(
        32, help="Longer prompts are refused before the run starts.", unit="tokens", ge=1, le=1_000_000
    )
    max_completion_tokens: int = setting(
        16, help="A completion is cut off here and counts as truncated.", unit="tokens", ge=1, le=1_000_000
    )
    temperature: float = setting(
        1.0, help="Divides the logits when sampling and when scoring.", gt=0, le=10, knob="temperature"
    )
    top_p: float = setting(
        1.0,
        help="Sample from the smallest set of tokens with this mass; below 1 the importance ratio is biased.",
        gt=0,
        le=1,
        advanced=True,
    )
    top_k: int = setting(0, help="Sample from the k likeliest tokens; 0 means all.", unit="tokens", ge=0, advanced=True)
    min_p: float = setting(
        0.0, help="Drop tokens less likely than this share of the likeliest.", ge=0, lt=1, advanced=True
    )
    typical_p: float = setting(
        1.0,
        help="Sample from the tokens whose surprisal is closest to the entropy, up to this mass; 1 means all.",
        gt=0,
        le=1,
        advanced=True,
    )
    engine: Literal["hf", "vllm"] = setting(
        "hf",
        help="What generates: hf decodes with the training model itself; vllm with a copy of it, faster for large "
        "models and long completions, given the new weights before every step. Both give exact entropy.",
        advanced=True,
    )
    vllm: VllmConfig = setting(
        VllmConfig(), title="vLLM", help="How vLLM runs.", show_if={"engine": "vllm"}, advanced=True
    )
    server: ServerConfig = setting(ServerConfig(), help="Generation in a process of its own.")
    staleness: int = setting(
        0,
        help="Updates by which the weights that sample may lag behind: 1 samples the next step while this one is "
        "learned, which takes a server.",
        unit="steps",
        ge=0,
        le=1,
        advanced=True,
    )

    def drawn_at(self, temperature: float) -> SamplerSpec:
        """Return how tokens are drawn at a temperature, with the truncations set here."""
        return SamplerSpec(temperature, self.top_p, self.top_k, self.min_p, self.typical_p)
