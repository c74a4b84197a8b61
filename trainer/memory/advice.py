"""Which settings to change when a run does not fit, the most effective first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from trainer.config import RunConfig
from trainer.memory.batch import microbatch
from trainer.memory.plan import plan
from trainer.model_files import ModelInfo

WORTH = 0.02  # of the peak; smaller savings are not mentioned


class Advice(BaseModel):
    """One change of one setting, and the peak of the whole machine with it alone, bytes."""

    field: str
    value: Any
    machine_bytes: int
    saved_bytes: int
    text: str


def advice(config: RunConfig, info: ModelInfo, *, gpu_bytes: int | None = None) -> list[Advice]:
    """Return changes that lower the peak, by falling effect; none where the memory is unknown."""
    before = plan(config, info, gpu_bytes=gpu_bytes)
    if before is None:
        return []
    found = []
    for field, value, text in _changes(config):
        after = plan(_with(config, field, value), info, gpu_bytes=gpu_bytes)
        saved = before.machine_bytes - after.machine_bytes if after else 0
        if after and saved > WORTH * before.machine_bytes:
            found.append(
                Advice(field=field, value=value, machine_bytes=after.machine_bytes, saved_bytes=saved, text=text)
            )
    return sorted(found, key=lambda change: -change.saved_bytes)


def _changes(config: RunConfig) -> Iterator[tuple[str, Any, str]]:
    """Yield (field, value, what it says) of what may be changed."""
    model, sampling, resources = config.model, config.sampling, config.resources
    if not model.lora.enabled:
        yield "model.lora.enabled", True, "train LoRA adapters instead of all weights"
    if not model.gradient_checkpointing:
        yield "model.gradient_checkpointing", True, "turn gradient checkpointing on"
    if model.dtype == "float32":
        yield "model.dtype", "bfloat16", "take bfloat16"
    if config.optimiser.state_precision == "float32":
        yield "optimiser.state_precision", "8bit", "keep AdamW's moments in 8 bits"
    if (resources.gpus or resources.processes) > 1 and resources.sharding == "none" and not model.lora.enabled:
        yield "resources.sharding", "fsdp2", "share weights and moments among the processes"
    fewer = max(sampling.max_prompt_tokens + sampling.max_completion_tokens, microbatch(config) // 4)
    yield "optimiser.tokens_per_microbatch", fewer, f"lower the tokens of a micro-batch to {fewer}"
    shorter = max(1, sampling.max_completion_tokens // 2)
    yield "sampling.max_completion_tokens", shorter, f"allow completions of {shorter} tokens"
    if sampling.samples_per_prompt > 1:
        samples = sampling.samples_per_prompt // 2
        yield "sampling.samples_per_prompt", samples, f"take {samples} samples of each prompt"
    if not resources.gpus and resources.processes > 1:
        yield "resources.processes", 1, "run one process"


def _with(config: RunConfig, field: str, value: Any) -> RunConfig:
    """Return the config with one setting changed; other fields need not fit it, only sizes are read."""
    section, _, rest = field.partition(".")
    part = getattr(config, section)
    inner, _, leaf = rest.partition(".")
    changed = part.model_copy(update={inner: getattr(part, inner).model_copy(update={leaf: value}) if leaf else value})
    return config.model_copy(update={section: changed})
