"""Objective: the parts of a config, run as one pipeline. The loop calls this class and names no method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from trainer.lazy import torch
from trainer.objectives.base import AuxiliaryPlan, Knob, ObjectivePart, Observation, Outcome, Statistic, Step
from trainer.objectives.config import ObjectiveConfig, knob_fields
from trainer.objectives.ratio import clip_of
from trainer.objectives.reductions import valid_of
from trainer.objectives.stages import (
    Aggregation,
    Blend,
    ClipRange,
    Controller,
    Decoding,
    Normaliser,
    Regulariser,
    RewardShaper,
    Rollout,
    SampleFilter,
    Sampling,
    SequenceMultiplier,
    Surrogate,
    TokenMask,
    TokenPenalty,
    TokenShaper,
    TokenWeight,
)
from trainer.rollout.groups import Groups
from trainer.statistics import STATISTICS

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch
    from trainer.rollout.base import SamplerSpec, Scene, Strategy

Kind = TypeVar("Kind", bound=ObjectivePart)


class Objective:
    """A resolved objective.

    Once per rollout batch `prepare` turns rewards into token advantages and a mask; once per optimiser step `apply`
    returns the loss and its gradient with respect to log-prob and entropy; once per step `control` moves knobs.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self.parts: list[ObjectivePart] = list(config.parts)

    def _all(self, kind: type[Kind]) -> list[Kind]:
        return [part for part in self.parts if isinstance(part, kind)]

    def _only(self, kind: type[Kind]) -> Kind:
        return self._all(kind)[0]

    @property
    def needs(self) -> frozenset[Statistic]:
        """The per-token statistics some part reads; nothing else has to be computed."""
        return frozenset().union(*(part.reads() for part in self.parts))

    def options(self, knobs: dict[str, float] | None = None) -> dict[str, Any]:
        """Return what the statistics' computation depends on, by option name (trainer/statistics.py)."""
        knobs = {**self._initial, **(knobs or {})}
        return {name: value for part in self.parts for name, value in part.options(knobs).items()}

    def knobs(self) -> dict[str, Knob]:
        """Return the steerable numbers with their initial values and bounds."""
        return {name: knob_of(part, name, field) for part in self.parts for name, field in knob_fields(part).items()}

    @cached_property
    def _initial(self) -> dict[str, float]:
        return {name: knob.value for name, knob in self.knobs().items()}

    def _in_force(self, step: Step) -> Step:
        """Return the step with every knob present: given values over initial ones; metrics stay shared."""
        return dataclasses.replace(step, knobs={**self._initial, **step.knobs})

    # -- once per rollout batch ---------------------------------------------------------------------------------

    def prepare(self, batch: TokenBatch, step: Step) -> TokenBatch:
        """Return the batch with token `advantage` [N] and `mask` [N], detached.

        A batch that brings advantages keeps them in place of the normaliser's. Completions without a usable reward
        enter no group statistics and leave the mask.
        """
        step = self._in_force(step)
        with torch.no_grad():
            batch = _cleaned(batch)
            for part in self._all(Decoding):
                part.measure(batch, step)
            batch = self._advantages(batch, step)
            for shaper in self._all(TokenShaper):
                batch = batch.replace(advantage=shaper.shape(batch, step).to(batch.logprob.dtype))
            batch = self._filtered(batch, step)
            batch = self._composed(batch, step)
            batch = self._dropped(batch, step)
        return batch

    def _advantages(self, batch: TokenBatch, step: Step) -> TokenBatch:
        for shaper in self._all(RewardShaper):
            batch = batch.replace(reward=shaper.shape(batch, step).to(batch.reward.dtype))
        advantage = batch.advantage
        if advantage is None:
            normaliser = self._only(Normaliser)
            advantage = normaliser.normalise(batch, step)
            advantage = advantage if normaliser.per_token else batch.per_token(advantage)
        batch = batch.replace(advantage=advantage.to(batch.logprob.dtype))
        for multiplier in self._all(SequenceMultiplier):
            factor = batch.per_token(multiplier.multiply(batch, step)).to(batch.logprob.dtype)
            batch = batch.replace(advantage=batch.need("advantage") * factor)
        return batch

    def _filtered(self, batch: TokenBatch, step: Step) -> TokenBatch:
        assert batch.mask is not None
        for part in self._all(SampleFilter):
            keep = part.keep(batch, step)
            step.metrics[f"objective/{part.type}_kept_share"] = float(keep.double().mean()) if keep.numel() else 1.0
            batch = batch.replace(mask=batch.mask * batch.per_token(keep), advantage=part.rescore(batch, step))
        return batch

    def _composed(self, batch: TokenBatch, step: Step) -> TokenBatch:
        if batch.auxiliary is None:
            return batch
        for part in self._all(Sampling):
            return part.compose(batch, step)
        return batch

    def _dropped(self, batch: TokenBatch, step: Step) -> TokenBatch:
        """Return the batch without the tokens that masks of the whole rollout batch drop."""
        for part in self._all(TokenMask):
            if part.once:
                batch = batch.replace(mask=batch.need("mask") * self._kept(part, batch, step))
        return batch

    # -- once per optimiser step --------------------------------------------------------------------------------

    def apply(self, batch: TokenBatch, step: Step) -> Outcome:
        """Return loss and gradients of one optimiser step over all its tokens; `prepare` must have seen the batch."""
        step = self._in_force(step)
        batch, leaves = _with_leaves(batch)
        with torch.enable_grad():
            with torch.no_grad():
                batch = self._reweighed(batch, step)
                batch, gate = self._masked(batch, step)
            loss = self._loss(batch, gate, step)
            total = loss + 0 * batch.logprob.sum()
            grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        found = {name: grad for name, grad in zip(leaves, grads, strict=True) if grad is not None and bool(grad.any())}
        grad_logprob = found.pop("logprob", torch.zeros_like(batch.logprob))
        mask, advantage = batch.need("mask"), batch.need("advantage")
        with torch.no_grad():
            scale = self._only(Aggregation).scale(batch, step)
            weight = torch.where(scale > 0, -grad_logprob / scale, 0.0) + 0.0  # -0 becomes 0
            self._report(batch, step, loss)
        outcome = Outcome(
            loss=loss.detach(),
            grad_logprob=grad_logprob,
            grad_entropy=found.pop("entropy", None),
            advantage=advantage,
            mask=mask * gate,
            weight=weight,
            metrics=step.metrics,
            grad_extra=found,
        )
        with torch.no_grad():
            for controller in self._all(Controller):
                controller.watch(batch, outcome, step)
        return outcome

    def _reweighed(self, batch: TokenBatch, step: Step) -> TokenBatch:
        """Return the batch with each token's clip and the advantage this update uses."""
        for ranges in self._all(ClipRange):
            low, high = clip_of(batch, step)
            low, high = ranges.clip(batch, step, low, high)
            batch = batch.replace(clip_low=low, clip_high=high)
        for weight in self._all(TokenWeight):
            batch = batch.replace(advantage=weight.reweigh(batch, step))
        return batch

    def _masked(self, batch: TokenBatch, step: Step) -> tuple[TokenBatch, Tensor]:
        """Return the batch with dropped tokens out of its mask, and the gate of detached ones, [N]."""
        gate = torch.ones_like(batch.logprob)
        for part in self._all(TokenMask):
            if part.once:
                continue
            keep = self._kept(part, batch, step)
            if part.semantics() == "drop":
                batch = batch.replace(mask=batch.need("mask") * keep)
            else:
                gate = gate * keep
        return batch, gate

    def _kept(self, part: TokenMask, batch: TokenBatch, step: Step) -> Tensor:
        keep, mask = part.keep(batch, step).to(batch.logprob.dtype), batch.need("mask")
        step.metrics[f"objective/{part.type}_kept_share"] = float((keep * mask).sum() / mask.sum().clamp(min=1))
        return keep

    def _policy_loss(self, step: Step) -> Callable[[TokenBatch], Tensor]:
        """Return the surrogate, wrapped by every blend."""
        loss: Callable[[TokenBatch], Tensor] = partial(self._only(Surrogate).loss, step=step)
        for part in self._all(Blend):
            loss = partial(part.blend, step=step, loss=loss)
        return loss

    def _loss(self, batch: TokenBatch, gate: Tensor, step: Step) -> Tensor:
        values = self._policy_loss(step)(batch)
        values = torch.where(gate > 0, values, torch.zeros_like(values))
        for penalty in self._all(TokenPenalty):
            values = values + penalty.penalty(batch, step)
        loss = self._only(Aggregation).reduce(values, batch, step)
        for regulariser in self._all(Regulariser):
            loss = loss + regulariser.regularise(batch, step)
        return loss

    def _report(self, batch: TokenBatch, step: Step, loss: Tensor) -> None:
        mask = batch.mask
        assert mask is not None
        total = mask.sum().clamp(min=1)
        step.metrics["objective/loss"] = float(loss)
        step.metrics["objective/tokens"] = float(mask.sum())
        if batch.old_logprob is not None:
            moved = (batch.old_logprob - batch.logprob.detach()) * mask
            step.metrics["objective/old_kl"] = float(moved.sum() / total)

    # -- between steps ------------------------------------------------------------------------------------------

    def start(self) -> dict[str, Any]:
        """Return the controllers' initial state, by part type; plain JSON."""
        return {part.type: part.initial_state() for part in self._all(Controller)}

    def control(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Return the next state and the knobs that changed; `knobs` are the values in force, steered ones included."""
        changed: dict[str, float] = {}
        state, knobs = dict(state), {**self._initial, **knobs}
        for part in self._all(Controller):
            state[part.type], moved = part.update(state.get(part.type, part.initial_state()), seen, knobs)
            changed |= {name: value for name, value in moved.items() if value != knobs.get(name)}
            knobs |= moved
        return state, changed

    def alerts(self, state: dict[str, Any]) -> list[str]:
        """Return what the last `control` wants a person to read."""
        texts = (part.alert(state.get(part.type, {})) for part in self._all(Controller))
        return [text for text in texts if text]

    def report(self, state: dict[str, Any]) -> dict[str, float]:
        """Return the controllers' own figures of the last `control`, by metric name."""
        parts = (part.report(state.get(part.type, {})) for part in self._all(Controller))
        return {name: value for figures in parts for name, value in figures.items()}

    def target(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float] | None:
        """Return the entropy band (low, high) in nats aimed at in this step, or None."""
        knobs = {**self._initial, **knobs}
        bands = (part.band(step, total_steps, knobs) for part in self.parts)
        return next((band for band in bands if band is not None), None)

    def auxiliary(self, step: Step) -> AuxiliaryPlan | None:
        """Return the extra rollouts wanted for the coming step, or None."""
        plans = (part.plan(self._in_force(step)) for part in self._all(Sampling))
        return next(plans, None)

    def strategy(self, scene: Scene, step: Step) -> Strategy:
        """Return what plans the rollouts of one step: the rollout part's strategy, or plain groups."""
        found = (part.strategy(scene, self._in_force(step)) for part in self._all(Rollout))
        return next(found, None) or Groups(scene)

    def sampler(self, given: SamplerSpec, sample: int, samples: int, step: Step) -> SamplerSpec:
        """Return how the sample of this number among the group's is drawn."""
        step = self._in_force(step)
        for part in self._all(Decoding):
            given = part.sampler(given, sample, samples, step)
        return given


def knob_of(part: ObjectivePart, name: str, field: str) -> Knob:
    """Return the knob that a setting starts, bounded as the setting is."""
    info = type(part).model_fields[field]
    low = next((getattr(m, a) for m in info.metadata for a in ("ge", "gt") if getattr(m, a, None) is not None), None)
    high = next((getattr(m, a) for m in info.metadata for a in ("le", "lt") if getattr(m, a, None) is not None), None)
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    unit, value = str(extra.get("unit", "")), float(getattr(part, field))
    return Knob(name=name, value=value, low=low, high=high, help=info.description or "", unit=unit)


def _with_leaves(batch: TokenBatch) -> tuple[TokenBatch, dict[str, Tensor]]:
    """Return the batch with a mask, and the tensors to differentiate by; they are leaves of their own graph."""
    known = {"logprob": batch.logprob, "entropy": batch.entropy}
    extra = {name: value for name, value in batch.extra.items() if STATISTICS[name].differentiable}
    leaves = {name: value.detach().requires_grad_() for name, value in (known | extra).items() if value is not None}
    mask = torch.ones_like(batch.logprob) if batch.mask is None else batch.mask.to(batch.logprob.dtype)
    changed = {name: leaves[name] for name in extra}
    batch = batch.replace(
        logprob=leaves["logprob"], entropy=leaves.get("entropy"), mask=mask, extra={**batch.extra, **changed}
    )
    return batch, leaves


def _cleaned(batch: TokenBatch) -> TokenBatch:
    """Return the batch with a mask, and without completions whose reward is unusable."""
    valid = valid_of(batch)
    mask = torch.ones_like(batch.logprob) if batch.mask is None else batch.mask.to(batch.logprob.dtype)
    reward = torch.where(valid, batch.reward, torch.zeros_like(batch.reward))
    advantage = None if batch.advantage is None else batch.advantage.detach()
    old_entropy = batch.old_entropy
    if old_entropy is None and batch.entropy is not None:  # on-policy: the current policy is the step-start one
        old_entropy = batch.entropy.detach()
    mask = mask * batch.per_token(valid)
    return batch.replace(reward=reward, valid=valid, mask=mask, advantage=advantage, old_entropy=old_entropy)
