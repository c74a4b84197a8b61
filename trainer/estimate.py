"""What a run will cost, roughly and before it starts: batches, tokens, memory, disk. No torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import BaseModel

from trainer.config import RunConfig
from trainer.model_files import ModelInfo

MOMENTS = 8  # bytes a trained weight: AdamW's two, float32
ACTIVATIONS = (
    34  # bytes per token, layer and hidden unit at 16 bits (arXiv 2205.05198, section 4, without attention maps)
)
LINEARS = 9  # adapted matrices of a layer in units of [hidden, hidden], inputs and outputs added up


class Estimate(BaseModel):
    """`memory_bytes` is rough and for one process; `disk_bytes` counts the checkpoints kept and one draft."""

    steps: int
    updates: int
    completions_per_step: int
    completions: int
    max_tokens: int
    evaluation_completions: int
    parameters: int
    trained_parameters: int
    memory_bytes: int
    checkpoint_bytes: int
    disk_bytes: int
    free_disk_bytes: int | None


def estimate(config: RunConfig, info: ModelInfo, folder: Path | None) -> Estimate:
    """Return the figures of a run whose folder will lie in `folder` (None: not known, free space is left out)."""
    sampling, optimiser, evaluation = config.sampling, config.optimiser, config.evaluation
    per_step = sampling.prompts_per_step * sampling.samples_per_prompt
    times = 2 + (optimiser.steps - 1) // evaluation.every_steps if evaluation.every_steps else 0
    trained = _trained(config, info)
    checkpoint = _checkpoint_bytes(config, info, trained)
    kept = config.checkpoint.keep if config.checkpoint.every_steps else 1
    return Estimate(
        steps=optimiser.steps,
        updates=optimiser.steps * optimiser.minibatches_per_step,
        completions_per_step=per_step,
        completions=per_step * optimiser.steps,
        max_tokens=per_step * optimiser.steps * sampling.max_completion_tokens,
        evaluation_completions=times * evaluation.prompts * (evaluation.samples_per_prompt + evaluation.greedy),
        parameters=info.parameters,
        trained_parameters=trained,
        memory_bytes=_memory_bytes(config, info, trained),
        checkpoint_bytes=checkpoint,
        disk_bytes=checkpoint * (kept + 1),
        free_disk_bytes=_free(folder),
    )


def _width(config: RunConfig) -> int:
    return 4 if config.model.dtype == "float32" else 2


def _trained(config: RunConfig, info: ModelInfo) -> int:
    lora = config.model.lora
    if not lora.enabled:
        return info.parameters
    return min(info.parameters, info.layers * 2 * LINEARS * info.hidden_size * lora.rank)


def _memory_bytes(config: RunConfig, info: ModelInfo, trained: int) -> int:
    width = _width(config)
    masters = 0 if width == 4 else 4 * trained
    weights = info.parameters * width + trained * (width + MOMENTS) + masters
    tokens = min(
        config.optimiser.tokens_per_microbatch,
        config.sampling.prompts_per_step
        * config.sampling.samples_per_prompt
        * (config.sampling.max_prompt_tokens + config.sampling.max_completion_tokens),
    )
    layers = 1 if config.model.gradient_checkpointing else info.layers
    activations = tokens * info.hidden_size * (layers * ACTIVATIONS * width // 2 + info.layers * width)
    return weights + activations


def _checkpoint_bytes(config: RunConfig, info: ModelInfo, trained: int) -> int:
    width = _width(config)
    return info.parameters * width + trained * (MOMENTS + (0 if width == 4 else 4)) + (8 << 20)


def _free(folder: Path | None) -> int | None:
    while folder is not None and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free if folder is not None and folder.exists() else None
