"""What every preset makes of one recorded batch: the gradients of two minibatches, whatever the processes.

Run as a script under torchrun it writes {preset: gradient [P]} of the whole step; `tests/trainer/test_every_preset.py`
compares. The completions are made up (no sampling, so every process has the same), the model and its passes are real.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch

from trainer.completion import Completion
from trainer.config import ModelConfig, RunConfig
from trainer.distributed import World
from trainer.models import resolve
from trainer.objectives import PRESETS, Objective, Step
from trainer.policy import Policy, Trajectory
from trainer.rewards.scoring import Scored
from trainer.statistics import unavailable
from trainer.tasks import Row
from trainer.update import Updater

PROMPTS, SAMPLES = 4, 4
RATE = 0.3  # of the plain gradient step between the minibatches


def launchable() -> list[str]:
    """Return the presets whose statistics the trainer supplies."""
    return [name for name in PRESETS if not unavailable(Objective(config(name).objective).needs)]


def config(preset: str) -> Any:
    return RunConfig.model_construct(objective=RunConfig.model_fields["objective"].annotation(preset=preset))


def completions(policy: Policy, seed: int = 3) -> list[Completion]:
    """Return 4 groups of 4 completions with some of everything: right, wrong, ungraded, cut off, with context."""
    dice, made = random.Random(seed), []
    context = random.Random(-seed - 1)
    for index in range(PROMPTS * SAMPLES):
        prompt = tuple(dice.randrange(3, policy.vocabulary) for _ in range(6))
        ids = tuple(dice.randrange(3, policy.vocabulary) for _ in range(dice.randint(2, 9)))
        text, offsets = policy.detokenizer.decode(ids)
        counts = counts_of(context, ids) if index % 3 == 1 else ()
        right = dice.random() < 0.5
        scored = Scored(float(right), {"task": float(right)}, canonical=str(dice.randrange(3)))
        made.append(
            Completion(
                index=index, group=index // SAMPLES, sample=index % SAMPLES, auxiliary=False,
                row=Row(key=str(index // SAMPLES), prompt="", answer=""), tokens=Trajectory(prompt, ids, counts),
                engine_logprob=[-2.0 - dice.random() for _ in ids], text=text, offsets=offsets,
                finish_reason="length" if dice.random() < 0.2 else "stop",
                scored=Scored(None, reason="timeout") if index == 5 else scored,
            )
        )  # fmt: skip
    return made


def counts_of(dice: random.Random, ids: tuple[int, ...]) -> tuple[bool, ...]:
    """Return that some tokens count and some are context, the first or those in the middle."""
    at = dice.randrange(1, len(ids))
    return (dice.random() < 0.5, *(place >= at for place in range(1, len(ids))))


class Recording:
    """Stands for the optimiser: keeps the gradients of both minibatches and moves the weights plainly between them."""

    def __init__(self, parameters: list[torch.nn.Parameter], world: World) -> None:
        self.parameters, self.world, self.seen = parameters, world, list[torch.Tensor]()

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def accumulator(self, parameter: torch.Tensor) -> torch.Tensor:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        return parameter.grad

    def step(self, step: int) -> float:
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.world.sum_(gradients)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.seen.append(flat.clone())
        size = float(flat.norm())
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter -= RATE * gradient / max(size, 1e-12)
        self.zero_grad()
        return size


def gradients(policy: Policy, reference: Policy, preset: str, world: World, *, budget: int) -> torch.Tensor:
    """Return the gradients of both minibatches of one step, joined, [2 P]; the policy's weights are put back."""
    before = [parameter.detach().clone() for parameter in policy.parameters]
    objective, recorder = Objective(config(preset).objective), Recording(policy.parameters, world)
    policy.budget = reference.budget = budget
    updater = Updater(policy, reference, objective, recorder, world)  # type: ignore[arg-type]
    mine = [c for c in completions(policy) if c.group % world.size == world.rank]
    knobs = {name: knob.value for name, knob in objective.knobs().items()}
    step = Step(knobs=knobs, step=4, total_steps=10, seed=1, max_completion_tokens=10)
    update = updater.update(mine, step, 2, 1.0, {})
    assert not update.problems, (preset, update.problems)
    with torch.no_grad():
        for parameter, value in zip(policy.parameters, before, strict=True):
            parameter.copy_(value)
    silent = torch.zeros(sum(parameter.numel() for parameter in policy.parameters))  # a minibatch without gradient
    return torch.cat([*recorder.seen, *[silent] * (2 - len(recorder.seen))])


def models(world: World, *, shallow: bool = False) -> tuple[Policy, Policy]:
    """Return the tiny model and, as its reference, the same with other weights; float64, so that only logic differs.

    `shallow` leaves them one layer: for what depends on the objective, a hundred of them.
    """
    source = resolve("builtin:countdown-tiny").path
    policy, reference = (Policy(source, ModelConfig(), world.device) for _ in range(2))
    for one in (policy, reference):
        one.lm.double()
        if shallow:
            one.lm.transformer.h = one.lm.transformer.h[:1]
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters:
            parameter += 0.02 * torch.randn(parameter.shape, generator=dice, dtype=parameter.dtype)
    return policy, reference


def main(path: Path) -> None:
    torch.set_num_threads(1)
    world = World(cpu=True)
    policy, reference = models(world, shallow=True)
    found = {name: gradients(policy, reference, name, world, budget=64) for name in launchable()}
    if world.main:
        torch.save(found, path)
    world.barrier()
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
