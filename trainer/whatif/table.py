"""table: every preset on one recorded step, in the few figures that tell them apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.objectives import PRESETS, ObjectiveConfig
from trainer.objectives.entropy_change.first_order import change, discriminator
from trainer.whatif.effect import CLIPPED, MASKED, PULL, PUSH, Effect, effect, own, plain
from trainer.whatif.recording import Recording

AGREES = 0.99  # share of tokens whose recomputed weight must equal the recorded one
CLOSE = 2e-3  # relative; recorded weights have 11 bits


@dataclass(frozen=True)
class Row:
    """One objective on one step; shares are of all recorded tokens. `refused` says why there are no figures."""

    preset: str
    title: str
    mass: float | None = None  # sum |gradient| relative to plain on-policy GRPO; None where GRPO has none
    push: float | None = None  # the part of it that raises log-probs
    pull: float | None = None  # the part that lowers them
    touched: float = 0.0  # tokens with a gradient by log-prob or entropy
    masked: float = 0.0
    clipped: float = 0.0
    change: float | None = None  # predicted entropy change, nats per unit step: mean over tokens
    change_policy: float | None = None  # the part through log-probs
    change_entropy: float | None = None  # the part through the entropy gradient
    exact: bool = True  # False: estimated from the sampled tokens
    notes: list[str] = field(default_factory=list)
    refused: str = ""


def table(recording: Recording, presets: list[str] | None = None) -> Iterator[Row]:
    """Yield the run's own objective first, then every preset with its own settings."""
    reference = float(plain(recording).abs().sum())
    yield own_row(recording, reference)
    for name in PRESETS if presets is None else presets:
        yield row(recording, ObjectiveConfig(preset=name), reference=reference)


def row(
    recording: Recording,
    config: ObjectiveConfig,
    knobs: dict[str, float] | None = None,
    *,
    reference: float | None = None,
    done: Effect | None = None,
) -> Row:
    """Return the figures of one objective, or why there are none; `done` saves computing the effect again."""
    preset = PRESETS[config.preset]
    blank = Row(preset.name, preset.title)
    try:
        found = done or effect(recording, config, knobs)
    except ConfigError as error:
        return replace(blank, refused=str(error))
    if reference is None:
        reference = float(plain(recording).abs().sum())
    notes = ["controllers rest at their starting values"] if _controlled(config) and knobs is None else []
    return _filled(replace(blank, notes=notes), recording, found, reference)


def own_row(recording: Recording, reference: float) -> Row:
    """Return the run's own objective, recomputed under the knobs of the step where that gives what was recorded."""
    if recording.objective is None:
        blank = Row("", "This run", notes=["its objective is unknown to this version: from the recorded weights"])
        return _filled(blank, recording, own(recording), reference)
    preset = PRESETS[recording.objective.preset]
    blank = Row(preset.name, preset.title)
    try:
        found = effect(recording, recording.objective, recording.step.knobs)
    except ConfigError as error:
        note = f"from the recorded weights, as a token mean; the objective itself is {error}"
        return _filled(replace(blank, notes=[note]), recording, own(recording), reference)
    agreement = agrees(found.weight, recording.weight)
    if agreement >= AGREES:
        return _filled(blank, recording, found, reference)
    note = f"from the recorded weights, as a token mean: computed again, {1 - agreement:.1%} of the tokens differ"
    return _filled(replace(blank, notes=[note]), recording, own(recording), reference)


def agrees(weight: Tensor, recorded: Tensor) -> float:
    """Return the share of tokens whose weight is the recorded one, to the precision of the record."""
    if not len(weight):
        return 1.0
    return float(((weight - recorded).abs() <= CLOSE * recorded.abs() + 1e-6).double().mean())


def _controlled(config: ObjectiveConfig) -> bool:
    return any(part.stage == "controller" for part in config.parts)


def _filled(blank: Row, recording: Recording, found: Effect, reference: float) -> Row:
    finite = torch.isfinite(found.gradient) & torch.isfinite(found.entropy_weight)
    if not bool(finite.all()):
        return replace(blank, refused=f"its gradient is not finite on {int((~finite).sum())} tokens")
    tokens = max(1, len(found.kind))
    through, entropy, exact = predicted(recording, found)
    notes = [*blank.notes, *(f"without its gradient through {name}" for name in found.beyond)]
    positive = float(found.gradient.clamp(min=0).sum())
    negative = float(-found.gradient.clamp(max=0).sum())
    return replace(
        blank,
        mass=(positive + negative) / reference if reference else None,
        push=positive / reference if reference else None,
        pull=negative / reference if reference else None,
        touched=float(((found.gradient != 0) | (found.entropy_weight != 0)).sum()) / tokens,
        masked=float((found.kind == MASKED).sum()) / tokens,
        clipped=float((found.kind == CLIPPED).sum()) / tokens,
        change=through + entropy,
        change_policy=through,
        change_entropy=entropy,
        exact=exact,
        notes=notes,
    )


def predicted(recording: Recording, found: Effect) -> tuple[float, float, bool]:
    """Return the first-order entropy change of a unit step, nats: through log-probs, through entropy; whether exact.

    Through log-probs -g (S - N) (trainer/objectives/entropy_change/first_order.py), through entropy e times the squared
    norm of the entropy's gradient by the logits; means over all tokens. Where the recording lacks the moments, N is
    replaced by the mean of S over the sampled tokens and the norm by p (log p + H)^2: unbiased for tokens the policy
    itself drew, and noisy.
    """
    now, exact = recording.now, True
    through = entropy = 0.0
    if not len(found.kind):
        return through, entropy, exact
    if bool(found.gradient.any()):
        exact = now.sum_p2 is not None and now.sum_p2_logp is not None
        sampled = discriminator(now)
        values = change(now, found.gradient) if exact else -found.gradient * (sampled - sampled.mean())
        through = float(values.mean())
    if bool(found.entropy_weight.any()):
        gain = now.extra.get("entropy_gain")
        exact &= gain is not None
        if gain is None:
            gain = discriminator(now) * (now.logprob + now.need("entropy"))
        entropy = float((found.entropy_weight * gain).mean())
    return through, entropy, exact


__all__ = ["PULL", "PUSH", "Row", "agrees", "own_row", "predicted", "row", "table"]
