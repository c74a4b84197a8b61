"""One rollout batch into one or more optimiser updates, each in two passes.

Pass 1 scores every completion without gradients; a step of one update may take what sampling said instead
(trainer/passes.py). The vectors of all processes are joined, so the objective sees the whole step and differentiates
its loss by log-prob and entropy. Pass 2 runs micro-batches forward, with gradients, and carries these two through the
model. Neither micro-batches nor processes appear in the result.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.batch import TokenBatch
from trainer.completion import Completion
from trainer.distributed import World
from trainer.layout import Layout
from trainer.objectives import Objective, Outcome, Step
from trainer.optimiser import Optimiser
from trainer.policy import Policy
from trainer.scoring import Scorer
from trainer.statistics import STATISTICS


@dataclass
class Update:
    """What became of a rollout batch; tensors span the whole step, [N] tokens of [S] completions, on the CPU."""

    layout: Layout
    batch: TokenBatch  # as prepared, with the step-start policy's statistics
    weight: Tensor  # [N] coefficient of each token's log-prob gradient (see Outcome)
    entropy_weight: Tensor  # [N] the same for its entropy gradient, times the number of tokens
    kept: Tensor  # [N] 0/1, tokens that kept their policy gradient after all masks
    sampled: bool = False  # the step-start statistics are those of sampling
    met: Tensor | None = None  # [N] then: log-probs as the pass with gradients met them, NaN where it met none
    current: dict[str, Tensor] = field(default_factory=dict)  # [N] by statistic: as the token's own minibatch found it
    norms: list[float] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Updater:
    """Holds what every update needs."""

    def __init__(
        self, policy: Policy, reference: Policy | None, objective: Objective, optimiser: Optimiser, world: World
    ) -> None:
        self.policy, self.objective, self.optimiser = policy, objective, optimiser
        policy.output.accumulator = optimiser.accumulator
        self.scorer = Scorer(policy, reference, objective.needs, world)

    def update(
        self,
        completions: list[Completion],
        step: Step,
        minibatches: int,
        temperature: float,
        times: dict[str, float],
        *,
        also: Collection[str] = (),
        sampled: bool = False,
    ) -> Update:
        """Score, weigh and learn from this process's completions; adds to `times` (seconds).

        `also` names statistics of the head to compute besides what the objective reads: those that are recorded.
        `sampled` does without the pass that scores: the statistics are those of sampling.
        """
        began = time.monotonic()
        options = self.objective.options(step.knobs)
        batch, layout = self.scorer.start(completions, temperature, options, also=also, sampled=sampled)
        if not sampled:
            times["score"] = time.monotonic() - began
            began = time.monotonic()
        zeros = torch.zeros_like(batch.logprob)
        met = torch.full_like(zeros, torch.nan) if sampled else None
        if not bool(torch.isfinite(batch.logprob).all()):
            problems = ["log-probs are not finite"]
            return Update(layout, batch, zeros, zeros, torch.ones_like(zeros), sampled, met, problems=problems)
        batch = self.objective.prepare(batch, step)
        update = Update(layout, batch, zeros.clone(), zeros.clone(), zeros.clone(), sampled, met)
        groups = int(batch.group.max()) + 1
        for number in range(minibatches):
            chosen = batch.group * minibatches // groups == number  # [S]
            self._minibatch(update, completions, step, number, chosen, temperature, also)
        for name, value in step.metrics.items():
            update.metrics.setdefault(name, [value])
        times["update"] = time.monotonic() - began
        return update

    def _minibatch(
        self,
        update: Update,
        completions: list[Completion],
        step: Step,
        number: int,
        chosen: Tensor,
        temperature: float,
        also: Collection[str],
    ) -> None:
        """Apply the objective to the chosen completions [S] and take one optimiser step."""
        local = [c for c in completions if bool(chosen[torch.searchsorted(update.layout.index, c.index)])]
        where = update.batch.per_token(chosen).bool().nonzero().squeeze(1)  # [M] their tokens in the step
        batch = subset(update.batch, chosen)
        layout = update.layout if batch is update.batch else self.scorer.layout(local)
        options = self.objective.options(step.knobs)
        if number:  # the policy has moved since the step began
            batch = self.scorer.refresh(batch, local, layout, temperature, options, also=also)
        if batch is not update.batch:
            _remember(update, batch, where)
        part = Step(**{**vars(step), "minibatch": number, "metrics": {}})
        outcome = self.objective.apply(batch, part)
        for name, value in {**outcome.metrics, "loss": float(outcome.loss)}.items():
            update.metrics.setdefault(name, []).append(value)
        update.weight[where], update.kept[where] = outcome.weight, outcome.mask
        if outcome.grad_entropy is not None:
            update.entropy_weight[where] = -outcome.grad_entropy * len(where)
        self._learn(update, outcome, [c.tokens for c in local], layout.mine, step.step, temperature, options)

    def _learn(
        self,
        update: Update,
        outcome: Outcome,
        trajectories: list,
        mine: Tensor,
        step: int,
        temperature: float,
        options: dict[str, Any],
    ) -> None:
        """Carry the gradients through the model (pass 2) and step; note what is not finite."""
        extra = {name: grad[mine].float() for name, grad in outcome.grad_extra.items()}
        gradients = [outcome.grad_logprob, *outcome.grad_extra.values()]
        gradients += [] if outcome.grad_entropy is None else [outcome.grad_entropy]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in [outcome.loss, *gradients]):
            update.problems.append("the loss or its gradient is not finite")
            return
        if not any(bool(gradient.any()) for gradient in gradients):
            update.norms.append(0.0)  # nothing to learn from; momentum alone must not move the weights
            return
        entropy = None if outcome.grad_entropy is None else outcome.grad_entropy[mine].float()
        self.optimiser.zero_grad()
        met = self.policy.backward(
            trajectories,
            temperature,
            outcome.grad_logprob[mine].float(),
            entropy,
            self.optimiser.zero_grad,
            extra=extra,
            options=options,
        )
        if update.sampled:
            update.met = update.layout.tokens(met["logprob"]).double()
        norm = self.optimiser.step(step)
        if norm is None:
            update.problems.append("the gradient norm is not finite")
            return
        update.norms.append(norm)


def _remember(update: Update, batch: TokenBatch, where: Tensor) -> None:
    """Note the statistics of the policy as a minibatch's tokens, at `where` [M] in the step, found it."""
    known = {name: getattr(batch, name) for name, info in STATISTICS.items() if info.core and hasattr(batch, name)}
    for name, value in (known | batch.extra).items():
        info = STATISTICS[name]
        if value is not None and (info.policy, info.domain, info.supplier) == ("current", "token", "head"):
            update.current.setdefault(name, torch.zeros_like(update.weight))[where] = value.detach()


def subset(batch: TokenBatch, chosen: Tensor) -> TokenBatch:
    """Return the part of a batch that belongs to the chosen completions, [S] bool, renumbered from zero."""
    if bool(chosen.all()):
        return batch
    tokens = chosen[batch.sequence]
    renumbered = chosen.long().cumsum(0) - 1
    changes: dict[str, Any] = {}
    for name, value in vars(batch).items():
        if name != "extra" and value is not None:
            changes[name] = value[chosen if name in PER_COMPLETION else tokens]
    changes["extra"] = {
        name: value[tokens if STATISTICS[name].domain == "token" else chosen] for name, value in batch.extra.items()
    }
    changes["sequence"] = renumbered[changes["sequence"]]
    changes["group"] = torch.unique(changes["group"], return_inverse=True)[1]
    return TokenBatch(**changes)


PER_COMPLETION = ("group", "reward", "length", "valid", "truncated", "auxiliary")
