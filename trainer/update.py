"""One rollout batch into one or more optimiser updates, each in two passes.

Pass 1 scores every completion without gradients. The vectors of all processes are joined, so the objective sees the
whole step and differentiates its loss by log-prob and entropy. Pass 2 runs micro-batches forward again, with
gradients, and carries these two through the model. Neither micro-batches nor processes appear in the result.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.batch import TokenBatch
from trainer.collect import Completion
from trainer.distributed import World
from trainer.layout import Layout
from trainer.objectives import Objective, Outcome, Step
from trainer.optimiser import Optimiser
from trainer.policy import MOMENTS, Policy
from trainer.statistics import STATISTICS

SCORED = ("logprob", "entropy", *MOMENTS)


@dataclass
class Update:
    """What became of a rollout batch; tensors span the whole step, [N] tokens of [S] completions, on the CPU."""

    layout: Layout
    batch: TokenBatch  # as prepared, with the step-start policy's statistics
    weight: Tensor  # [N] coefficient of each token's log-prob gradient (see Outcome)
    entropy_weight: Tensor  # [N] the same for its entropy gradient, times the number of tokens
    norms: list[float] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Updater:
    """Holds what every update needs."""

    def __init__(
        self, policy: Policy, reference: Policy | None, objective: Objective, optimiser: Optimiser, world: World
    ) -> None:
        self.policy, self.reference, self.objective = policy, reference, objective
        self.optimiser, self.world = optimiser, world
        self.moments = bool(objective.needs & set(MOMENTS))

    def update(
        self, completions: list[Completion], step: Step, minibatches: int, temperature: float, times: dict[str, float]
    ) -> Update:
        """Score, weigh and learn from this process's completions; adds to `times` (seconds)."""
        began = time.monotonic()
        batch, layout = self._start(completions, temperature)
        times["score"] = time.monotonic() - began
        began = time.monotonic()
        zeros = torch.zeros_like(batch.logprob)
        if not bool(torch.isfinite(batch.logprob).all()):
            return Update(layout, batch, zeros, zeros, problems=["log-probs are not finite"])
        batch = self.objective.prepare(batch, step)
        update = Update(layout, batch, zeros.clone(), zeros.clone())
        groups = int(batch.group.max()) + 1
        for number in range(minibatches):
            chosen = batch.group * minibatches // groups == number  # [S]
            self._minibatch(update, completions, step, number, chosen, temperature)
        times["update"] = time.monotonic() - began
        return update

    def _start(self, completions: list[Completion], temperature: float) -> tuple[TokenBatch, Layout]:
        """Return the step's batch with the step-start policy's statistics (pass 1 of the first minibatch)."""
        layout = self._layout(completions)
        scores = self._score(completions, temperature)
        engine = torch.tensor([value for completion in completions for value in completion.engine_logprob])
        tokens = layout.tokens(torch.stack([*scores.values(), engine], 1)).double()  # [N, F]
        columns = dict(zip([*scores, "engine_logprob"], tokens.unbind(1), strict=True))
        rewards = [completion.scored.reward for completion in completions]
        facts = layout.completions(
            torch.tensor(
                [
                    [c.group, 0.0 if r is None else r, r is not None, c.finish_reason == "length", c.auxiliary]
                    for c, r in zip(completions, rewards, strict=True)
                ],
                dtype=torch.float64,
            )
        )  # [S, 5]
        return TokenBatch(
            logprob=columns["logprob"],
            sequence=layout.sequence,
            position=layout.position,
            group=facts[:, 0].long(),
            reward=facts[:, 1],
            length=layout.length,
            entropy=columns["entropy"],
            old_logprob=columns["logprob"],
            old_entropy=columns["entropy"],
            engine_logprob=columns["engine_logprob"],
            ref_logprob=columns.get("ref_logprob"),
            sum_p2=columns.get("sum_p2"),
            sum_p2_logp=columns.get("sum_p2_logp"),
            valid=facts[:, 2].bool(),
            truncated=facts[:, 3].bool(),
            auxiliary=facts[:, 4].bool() if bool(facts[:, 4].any()) else None,
        ), layout

    def _layout(self, completions: list[Completion]) -> Layout:
        lengths = [len(completion.tokens.completion) for completion in completions]
        indices = [completion.index for completion in completions]
        return Layout.of(self.world, torch.tensor(indices, dtype=torch.long), torch.tensor(lengths, dtype=torch.long))

    def _score(self, completions: list[Completion], temperature: float) -> dict[str, Tensor]:
        trajectories = [completion.tokens for completion in completions]
        scores = self.policy.score(trajectories, temperature, moments=self.moments)
        if "ref_logprob" in self.objective.needs:
            reference = self.reference or self.policy
            with reference.base():
                scores["ref_logprob"] = reference.score(trajectories, temperature)["logprob"]
        return scores

    def _minibatch(
        self, update: Update, completions: list[Completion], step: Step, number: int, chosen: Tensor, temperature: float
    ) -> None:
        """Apply the objective to the chosen completions [S] and take one optimiser step."""
        local = [c for c in completions if bool(chosen[torch.searchsorted(update.layout.index, c.index)])]
        where = update.batch.per_token(chosen).bool().nonzero().squeeze(1)  # [M] their tokens in the step
        batch = subset(update.batch, chosen)
        layout = update.layout if batch is update.batch else self._layout(local)
        if number:  # the policy has moved since the step began
            scores = self.policy.score([c.tokens for c in local], temperature, moments=self.moments)
            tokens = layout.tokens(torch.stack(list(scores.values()), 1)).double()
            batch = batch.replace(**dict(zip(scores, tokens.unbind(1), strict=True)))
        part = Step(**{**vars(step), "minibatch": number, "metrics": {}})
        outcome = self.objective.apply(batch, part)
        for name, value in {**outcome.metrics, "loss": float(outcome.loss)}.items():
            update.metrics.setdefault(name, []).append(value)
        update.weight[where] = outcome.weight
        if outcome.grad_entropy is not None:
            update.entropy_weight[where] = -outcome.grad_entropy * len(where)
        self._learn(update, outcome, [c.tokens for c in local], layout.mine, step.step, temperature)

    def _learn(
        self, update: Update, outcome: Outcome, trajectories: list, mine: Tensor, step: int, temperature: float
    ) -> None:
        """Carry the gradients through the model (pass 2) and step; note what is not finite."""
        gradients = [outcome.grad_logprob, *([] if outcome.grad_entropy is None else [outcome.grad_entropy])]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in [outcome.loss, *gradients]):
            update.problems.append("the loss or its gradient is not finite")
            return
        if not any(bool(gradient.any()) for gradient in gradients):
            update.norms.append(0.0)  # nothing to learn from; momentum alone must not move the weights
            return
        entropy = None if outcome.grad_entropy is None else outcome.grad_entropy[mine].float()
        self.optimiser.zero_grad()
        self.policy.backward(
            trajectories, temperature, outcome.grad_logprob[mine].float(), entropy, self.optimiser.zero_grad
        )
        norm = self.optimiser.step(step)
        if norm is None:
            update.problems.append("the gradient norm is not finite")
            return
        update.norms.append(norm)


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
