"""effect: what an objective does to every recorded token, by the trainer's own code."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.objectives import Objective, ObjectiveConfig, Step
from trainer.update import subset
from trainer.whatif.recording import Recording, moved

KINDS = ("none", "push", "pull", "masked", "clipped")  # the number of a kind is its place
NONE, PUSH, PULL, MASKED, CLIPPED = range(len(KINDS))


@dataclass(frozen=True)
class Effect:
    """What an objective does to N tokens.

    `gradient` is -dL/dlogprob times the number of tokens of the update, so that two objectives compare at the same
    step size; it equals `weight` under a token mean that drops nothing.
    """

    weight: Tensor  # [N] -dL/dlogprob times the token's denominator (Outcome.weight)
    gradient: Tensor  # [N]
    entropy_weight: Tensor  # [N] the same of entropy
    kind: Tensor  # [N] uint8, see KINDS
    beyond: tuple[str, ...] = ()  # other statistics that it has a gradient by


def effect(recording: Recording, config: ObjectiveConfig, knobs: dict[str, float] | None = None) -> Effect:
    """Apply an objective to a recorded step; `knobs` are those in force, the objective's settings without them.

    Controllers rest. Raises ConfigError where the recording lacks a statistic that the objective reads.
    """
    machine = Objective(config)
    step = dataclasses.replace(recording.step, knobs=dict(knobs or {}), metrics={})
    prepared = machine.prepare(recording.supply(machine), step)
    prepared = moved(prepared, recording.current)
    tokens = prepared.tokens
    weight, gradient, entropy_weight = (torch.zeros(tokens, dtype=torch.float64) for _ in range(3))
    kind, beyond = torch.zeros(tokens, dtype=torch.uint8), set[str]()
    for number in range(recording.minibatches):
        chosen = prepared.group * recording.minibatches // recording.prompts == number  # [S]
        where = prepared.per_token(chosen).nonzero().squeeze(1)
        if not len(where):
            continue
        part = Step(**{**vars(step), "minibatch": number, "metrics": {}})
        outcome = machine.apply(subset(prepared, chosen), part)
        weight[where], gradient[where] = outcome.weight, -outcome.grad_logprob * len(where) + 0.0
        if outcome.grad_entropy is not None:
            entropy_weight[where] = -outcome.grad_entropy * len(where) + 0.0
        kind[where] = kinds(outcome.weight, outcome.mask, outcome.advantage)
        beyond |= outcome.grad_extra.keys()
    return Effect(weight, gradient, entropy_weight, kind, tuple(sorted(beyond)))


def own(recording: Recording) -> Effect:
    """Return what the run's own objective did, from the recorded weights; denominators are those of a token mean."""
    zero = torch.zeros_like(recording.weight)
    sign = torch.where(recording.kept, _advantage(recording), zero)
    kind = kinds(recording.weight, recording.kept.double(), sign)
    return Effect(recording.weight, recording.weight, recording.entropy_weight, kind)


def kinds(weight: Tensor, mask: Tensor, advantage: Tensor) -> Tensor:
    """Return the kind of each token, uint8 [N].

    push and pull: its log-prob is raised or lowered; masked: a filter or mask took it out; clipped: it was kept and
    had an advantage, but the surrogate gave it no gradient; none: nothing to learn.
    """
    rest = torch.where(mask == 0, MASKED, torch.where(advantage != 0, CLIPPED, NONE))
    return torch.where(weight > 0, PUSH, torch.where(weight < 0, PULL, rest)).to(torch.uint8)


def _advantage(recording: Recording) -> Tensor:
    """Return the group advantage of each token, [N], to tell a clipped token from one without anything to learn."""
    prepared = plain(recording)
    return prepared if recording.objective is None else _of_own(recording, prepared)


def _of_own(recording: Recording, fallback: Tensor) -> Tensor:
    assert recording.objective is not None
    machine = Objective(recording.objective)
    if recording.missing(machine):
        return fallback
    step = dataclasses.replace(recording.step, metrics={})
    return machine.prepare(recording.supply(machine), step).need("advantage")


def plain(recording: Recording) -> Tensor:
    """Return the gradient of plain on-policy GRPO, [N], scaled as `Effect.gradient`: the group advantage of each token.

    Tokens that do not count, of ungraded and auxiliary completions, get 0 and leave the denominator.
    """
    machine = Objective(ObjectiveConfig(preset="grpo"))
    prepared = machine.prepare(recording.supply(machine), dataclasses.replace(recording.step, knobs={}, metrics={}))
    mask = prepared.need("mask")
    return prepared.need("advantage") * mask * len(mask) / mask.sum().clamp(min=1)
