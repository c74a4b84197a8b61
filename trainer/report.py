"""The numbers of a step, by name; docs/events.md says what each means."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.completion import BOUNDS, Completion
from trainer.distributed import World
from trainer.evaluation_metrics import distinct_right
from trainer.mismatch import mismatch
from trainer.objectives import Observation
from trainer.update import Update

RENAMED = {"objective/clip_share": "clip/share", "objective/old_kl": "kl/old"}


def answers(
    completions: Sequence[Completion], world: World
) -> list[tuple[int, bool | None, str | None, dict[str, float]]]:
    """Return (group, right, canonical answer, reward parts) of the main completions of all processes."""
    mine = [
        (
            c.group,
            c.right,
            c.scored.canonical,
            {name: value for name, value in c.scored.parts.items() if value is not None},
        )
        for c in completions
        if not c.auxiliary
    ]
    return [entry for part in world.gather(mine) for entry in part]


def ungraded(completions: Sequence[Completion], world: World) -> tuple[Counter[str], int]:
    """Return the ungraded completions of all processes by reason, and how many completions there are."""
    mine = Counter(c.scored.reason or "no score" for c in completions if c.scored.reward is None)
    parts = world.gather((mine, len(completions)))
    return sum((reasons for reasons, _ in parts), Counter()), sum(number for _, number in parts)


def entropy_bounds(completions: Sequence[Completion], world: World) -> dict[str, float]:
    """Return the means over tokens of the lower and upper bounds of their entropies, nats: the mean lies between them.

    Auxiliary completions are left out, as of every mean over the step.
    """
    mine = [c for c in completions if not c.auxiliary and BOUNDS[0] in c.engine_moments]
    columns = [[value for c in mine for value in c.tokens.counting(c.engine_moments[name])] for name in BOUNDS]
    parts = world.gather((len(columns[0]), *map(math.fsum, columns)))
    count, low, high = (math.fsum(part) for part in zip(*parts, strict=True))
    return {"entropy/bounds_low": low / count, "entropy/bounds_high": high / count} if count else {}


def measured(
    update: Update, completions: Sequence[Completion], sampling: dict[str, float], world: World, *, exact: bool
) -> dict[str, float]:
    """Return every figure of a step; all processes must call this.

    `sampling` holds the figures of collecting, `exact` says that the batch's entropies are no mere bounds.
    """
    bounds = {} if exact else entropy_bounds(completions, world)
    found = step_metrics(update, answers(completions, world), bounds) | _means(world.gather(sampling))
    return found | by_template(update, completions, world, bounds)


def step_metrics(
    update: Update,
    graded: list[tuple[int, bool | None, str | None, dict[str, float]]],
    bounds: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return every figure that follows from the batch; figures without a sample are left out.

    `bounds` (entropy_bounds) stand for the figures of entropies that are not known.
    """
    batch = update.batch
    graded_ok, entropy, logprob = batch.need("valid"), batch.need("old_entropy"), batch.need("old_logprob")
    trainer = logprob if update.met is None else update.met
    main = torch.ones_like(graded_ok) if batch.auxiliary is None else ~batch.auxiliary
    valid, tokens = graded_ok & main, main[batch.sequence]
    found = {
        **_reward(batch.reward[valid], batch.group[valid]),
        **_graded(graded),
        "reward/invalid": float((main & ~graded_ok).sum()),
        **(bounds or _entropy(entropy[tokens])),
        "entropy/sampled": -float(logprob[tokens].mean()),
        "length/mean": float(batch.length[main].double().mean()),
        "length/max": float(batch.length[main].max()),
        "length/truncated": float(batch.need("truncated")[main].double().mean()),
        **mismatch(batch.need("engine_logprob")[tokens], trainer[tokens], batch.sequence[tokens]),
    }
    if batch.ref_logprob is not None:
        gap = (batch.ref_logprob - logprob)[tokens]
        found["kl/ref"] = float((gap.exp() - gap - 1).mean())  # k3 (Schulman 2020): unbiased and never negative
    if batch.advantage is not None:
        found |= _advantage(batch.advantage, batch.need("mask"))
    if batch.auxiliary is not None and bool(batch.auxiliary.any()):
        found["reward/auxiliary_mean"] = float(batch.reward[batch.auxiliary & graded_ok].double().mean())
    for name, values in update.metrics.items():
        found[RENAMED.get(name, name)] = sum(values) / len(values)
    if update.norms:
        found["grad/norm"] = sum(update.norms) / len(update.norms)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def by_template(
    update: Update, completions: Sequence[Completion], world: World, bounds: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return mean reward and token entropy of each template's completions, where prompts have several wordings.

    With `bounds` (step_metrics) entropies are not known, and left out.
    """
    mine = {c.index: c.template for c in completions if c.template}
    names = {index: name for part in world.gather(mine) for index, name in part.items()}
    batch, found = update.batch, dict[str, float]()
    order = [names.get(int(index), "") for index in update.layout.index]
    for name in sorted(set(order) - {""}):
        chosen = torch.tensor([name == other for other in order])
        entropy, reward = batch.need("old_entropy")[chosen[batch.sequence]], batch.reward[chosen & batch.need("valid")]
        if not bounds:
            found[f"template/{name}_entropy"] = float(entropy.mean())
        found[f"template/{name}_reward"] = float(reward.mean())
    return {name: value for name, value in found.items() if math.isfinite(value)}


def observation(step: int, total: int, metrics: dict[str, float]) -> Observation:
    """Return what controllers see of a step."""
    return Observation(
        step=step,
        total_steps=total,
        entropy=metrics["entropy/mean"],
        entropy_sampled=metrics["entropy/sampled"],
        reward=metrics.get("reward/mean", 0.0),
        kl=metrics.get("kl/ref", 0.0),
        metrics=metrics,
    )


def line(step: int, total: int, metrics: dict[str, float]) -> str:
    """Return one step as one readable line."""
    shown = {"reward": "reward/mean", "entropy": "entropy/mean", "distinct": "reward/distinct", "grad": "grad/norm"}
    figures = "  ".join(f"{name} {metrics[key]:.3f}" for name, key in shown.items() if key in metrics)
    return f"step {step}/{total}  {figures}  {metrics['time/step']:.2f} s"


def _reward(reward: Tensor, group: Tensor) -> dict[str, float]:
    if not len(reward):
        return {}
    spread = [reward[group == number] for number in torch.unique(group)]
    same = sum(bool((values == values[0]).all()) for values in spread)
    return {
        "reward/mean": float(reward.mean()),
        "reward/std": float(reward.std(correction=0)),
        "reward/zero_variance": same / len(spread),
    }


def _graded(graded: list[tuple[int, bool | None, str | None, dict[str, float]]]) -> dict[str, float]:
    groups, parts = defaultdict(list), defaultdict(list)
    for group, right, answer, values in graded:
        groups[group].append((right, answer))
        for name, value in values.items():
            parts[name].append(value)
    found = {f"reward/{name}": math.fsum(values) / len(values) for name, values in parts.items()}
    distinct = distinct_right(list(groups.values()))
    return found if distinct is None else {**found, "reward/distinct": distinct}


def _entropy(entropy: Tensor) -> dict[str, float]:
    low, middle, high = torch.quantile(
        entropy[:: max(1, len(entropy) // 1_000_000)], entropy.new_tensor([0.1, 0.5, 0.9])
    ).tolist()
    return {
        "entropy/mean": float(entropy.mean()),
        "entropy/p10": low,
        "entropy/p50": middle,
        "entropy/p90": high,
    }


def _advantage(advantage: Tensor, mask: Tensor | None) -> dict[str, float]:
    chosen = advantage if mask is None else advantage[mask > 0]
    if not len(chosen):
        return {}
    return {
        "advantage/mean": float(chosen.mean()),
        "advantage/std": float(chosen.std(correction=0)),
        "advantage/min": float(chosen.min()),
        "advantage/max": float(chosen.max()),
        "advantage/zero": float((chosen == 0).double().mean()),
    }


def _means(parts: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over the processes that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    values = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
