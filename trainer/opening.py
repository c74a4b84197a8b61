"""What an attempt says when it starts: the `started` event, and how it computes, with the reasons."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from trainer.events import Choice
from trainer.kernels import choose_room
from trainer.passes import entropy_estimate, head_contract
from trainer.surroundings import versions

if TYPE_CHECKING:
    from trainer.loop import Trainer


def announce(trainer: Trainer) -> None:
    """Emit `started`, and warnings of what was found wrong with the run folder."""
    stream, memory = trainer.stream, trainer.memory
    stream.emit(
        "started",
        trainer.done,
        resume_step=trainer.done,
        total_steps=trainer.config.optimiser.steps,
        pid=os.getpid(),
        device=str(trainer.world.device),
        parameters=trainer.policy.total_parameters,
        vocabulary=trainer.policy.vocabulary,
        knobs=trainer.steering.described(),
        versions=versions(),
        plan=plan(trainer),
        memory={phase.name: phase.parts for phase in memory.phases} if memory else {},
    )
    for complaint in trainer.keeper.complaints:
        stream.emit("warning", trainer.done, code="checkpoint", message=complaint)
    sampling = trainer.config.sampling
    if sampling.engine == "vllm" and sampling.vllm.entropy == "exact" and not trainer.supply.engine.caps.exact_entropy:
        message = (
            "the sampler tap failed its self-test with this version of vLLM: vLLM draws by itself, and what sampling "
            "knows of an entropy is an interval"
        )
        stream.emit("warning", trainer.done, code="entropy", message=message)
    if trainer.attempt > 1 and trainer.keeper.resumed is None:
        message = "the attempts before wrote no checkpoint; this one starts at step 0"
        stream.emit("warning", 0, code="resume", message=message)


def plan(trainer: Trainer) -> dict[str, Any]:
    """Return how this attempt computes, and why, by what was chosen."""
    config, forward, passed = trainer.config, trainer.policy.forward, trainer.supply.old_logprobs
    room, why = choose_room(trainer.world.device, config.resources.kernel)
    chosen = {
        "old_logprobs": passed,
        "head": head_contract(config),
        "kernel": Choice(choice=room, why=why),
        "micro_batches": Choice(choice=f"{forward.name}, up to {trainer.policy.budget:,} tokens", why=forward.why),
    }
    if estimate := entropy_estimate(passed, trainer.supply.engine.caps):
        chosen["entropy"] = estimate
    return {name: choice.model_dump() for name, choice in chosen.items()}
