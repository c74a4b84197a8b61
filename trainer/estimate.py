"""What a run will cost, before it starts: batches, tokens, memory, disk. No torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import BaseModel

from trainer.config import RunConfig
from trainer.memory import Advice, MemoryPlan, advice, plan, unknown
from trainer.memory.activations import width_of
from trainer.memory.plan import MOMENTS, trained
from trainer.model_files import ModelInfo


class Estimate(BaseModel):
    """`generated_least` and `generated_most` are completions of a step, with those that a rollout strategy adds.

    `memory` is one process's, None where `memory_unknown` says why; `disk_bytes`: kept checkpoints and a draft.
    """

    steps: int
    updates: int
    completions_per_step: int
    completions: int
    generated_least: int
    generated_most: int
    max_tokens: int
    evaluation_completions: int
    parameters: int
    trained_parameters: int
    memory: MemoryPlan | None
    memory_unknown: str
    memory_room: int | None  # bytes that can be had: of the machine for all processes, or of a GPU for each
    memory_advice: list[Advice]  # what makes it less, most effective first
    checkpoint_bytes: int
    disk_bytes: int
    free_disk_bytes: int | None

    @property
    def memory_lacking(self) -> bool:
        """Return whether the run is expected to take more memory than there is."""
        return bool(self.memory and self.memory_room and self.memory.machine_bytes > self.memory_room)


def estimate(config: RunConfig, info: ModelInfo, folder: Path | None, *, room: int | None = None) -> Estimate:
    """Return the figures of a run whose folder will lie in `folder` (None: not known, free space is left out).

    `room` is the memory to be had: of one GPU where GPUs are asked for, else of the machine.
    """
    sampling, optimiser, evaluation = config.sampling, config.optimiser, config.evaluation
    per_step = sampling.prompts_per_step * sampling.samples_per_prompt
    rollout = config.objective.rollout
    least, most = rollout.cost(sampling.samples_per_prompt) if rollout else (1.0, 1.0)
    times = 2 + (optimiser.steps - 1) // evaluation.every_steps if evaluation.every_steps else 0
    moving = trained(config, info)
    checkpoint = _checkpoint_bytes(config, info, moving)
    gpu_bytes = room if config.resources.gpus else None
    kept = config.checkpoint.keep if config.checkpoint.every_steps else 1
    return Estimate(
        steps=optimiser.steps,
        updates=optimiser.steps * optimiser.minibatches_per_step,
        completions_per_step=per_step,
        completions=per_step * optimiser.steps,
        generated_least=round(per_step * least),
        generated_most=round(per_step * most),
        max_tokens=round(per_step * most) * optimiser.steps * sampling.max_completion_tokens,
        evaluation_completions=times * evaluation.prompts * (evaluation.samples_per_prompt + evaluation.greedy),
        parameters=info.parameters,
        trained_parameters=moving,
        memory=plan(config, info, gpu_bytes=gpu_bytes),
        memory_unknown=unknown(info),
        memory_room=room,
        memory_advice=advice(config, info, gpu_bytes=gpu_bytes),
        checkpoint_bytes=checkpoint,
        disk_bytes=checkpoint * (kept + 1),
        free_disk_bytes=_free(folder),
    )


def _checkpoint_bytes(config: RunConfig, info: ModelInfo, moving: int) -> int:
    width = width_of(config.model)
    return (
        info.parameters * width
        + int(moving * (MOMENTS[config.optimiser.state_precision] + (0 if width == 4 else 4)))
        + (8 << 20)
    )


def _free(folder: Path | None) -> int | None:
    while folder is not None and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free if folder is not None and folder.exists() else None
