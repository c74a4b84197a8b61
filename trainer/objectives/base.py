"""Stages, knobs and what flows between them: the frame every objective part fits into.

An objective is a list of parts, at most a few to a stage, run in the order of `STAGES`. Everything is computed over
the whole optimiser step from [N] vectors (log-prob, entropy, moments); `Objective.apply` differentiates the step's
loss with respect to log-prob and entropy only, and the loop carries these two gradients through the model micro-batch
by micro-batch. So no result depends on micro-batch size or process count, and `evaluate` is the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from trainer.errors import ConfigError
from trainer.lazy import torch
from trainer.part import Part, Settings
from trainer.statistics import STATISTICS, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

Stage = Literal[
    "sampling",
    "reward_shaper",
    "normaliser",
    "sequence_multiplier",
    "token_shaper",
    "sample_filter",
    "clip_range",
    "token_weight",
    "token_mask",
    "surrogate",
    "blend",
    "token_penalty",
    "regulariser",
    "aggregation",
    "controller",
]
STAGES: tuple[Stage, ...] = Stage.__args__  # type: ignore[attr-defined]

Domain = Literal["token", "completion", "group", "step", "history"]


@dataclass
class Step:
    """What a part may read besides the batch, and the one place it may write: metrics."""

    knobs: dict[str, float] = field(default_factory=dict)
    step: int = 0
    total_steps: int = 0
    minibatch: int = 0
    seed: int = 0
    max_completion_tokens: int = 0  # the run's limit; 0 where unknown
    vocabulary: int = 0  # the model's number of tokens; 0 where unknown
    metrics: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)  # controllers' states by part type, for what is no knob


@dataclass(frozen=True)
class Knob:
    """A number that controllers move and people steer while the run is alive."""

    name: str
    value: float
    low: float | None
    high: float | None
    help: str
    unit: str = ""


@dataclass(frozen=True)
class Observation:
    """What controllers see after a step; `entropy` is the exact token mean, `entropy_sampled` is -mean log-prob.

    `metrics` holds every figure of the step by name, those the parts wrote included.
    """

    step: int
    total_steps: int
    entropy: float
    entropy_sampled: float
    reward: float
    kl: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AuxiliaryPlan:
    """Extra rollouts of part of the prompts at another temperature (AEPO, SCOPE-RL)."""

    prompt_share: float
    temperature: float


@dataclass(frozen=True)
class Outcome:
    """What `Objective.apply` returns: the loss of the step and the two gradients to carry through the model.

    `weight` is -dL/dlogprob times the aggregation's token denominator: what the objective really multiplied a token's
    log-prob gradient by (the advantage, under plain on-policy GRPO). `grad_extra` holds the gradients with respect to
    other differentiable statistics, by name, where not identically zero.
    """

    loss: Tensor  # []
    grad_logprob: Tensor  # [N]
    grad_entropy: Tensor | None  # [N], None where identically zero
    advantage: Tensor  # [N]
    mask: Tensor  # [N] 0/1, tokens that kept their policy gradient after all masks
    weight: Tensor  # [N]
    metrics: dict[str, float]
    grad_extra: dict[str, Tensor] = field(default_factory=dict)


class ObjectivePart(Part):
    """Base of every part.

    `stage` places it, `needs` names the statistics it reads, `incompatible` the types it refuses, `requires` the types
    it cannot do without, `moves` the knobs it writes between steps. `formula` is LaTeX; `domain` is the widest it
    reduces over; `may_flip` says that a token's advantage may change sign.
    """

    stage: ClassVar[Stage]
    formula: ClassVar[str] = ""
    domain: ClassVar[Domain] = "token"
    may_flip: ClassVar[bool] = False
    needs: ClassVar[frozenset[Statistic]] = frozenset()
    incompatible: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset()
    moves: ClassVar[frozenset[str]] = frozenset()

    def reads(self) -> frozenset[Statistic]:
        """Return the statistics read under these settings."""
        return self.needs

    def options(self, knobs: dict[str, float]) -> dict[str, Any]:
        """Return what the computation of its statistics depends on, by the option's name in STATISTICS."""
        return {}

    def band(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float] | None:
        """Return the entropy band (low, high) in nats aimed at in this step; equal ends for a point target."""
        return None

    def course(self, x: float) -> tuple[float, float] | None:
        """Return the planned band at share x in [0, 1] of the run, in `course_unit`; None where nothing is planned."""
        return None

    def course_unit(self) -> str:
        """Return the unit of `course`: nats, or "x initial" for multiples of the initial entropy."""
        return "nats"


class Sampling(ObjectivePart):
    stage: ClassVar[Stage] = "sampling"

    def plan(self, step: Step) -> AuxiliaryPlan | None:
        """Return the extra rollouts wanted for the coming step."""
        raise NotImplementedError

    def compose(self, batch: TokenBatch, step: Step) -> TokenBatch:
        """Return the batch with the auxiliary completions worked in; advantages and mask are already there."""
        raise NotImplementedError


class RewardShaper(ObjectivePart):
    stage: ClassVar[Stage] = "reward_shaper"

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return the new reward, [S]."""
        raise NotImplementedError


class Normaliser(ObjectivePart):
    stage: ClassVar[Stage] = "normaliser"
    domain: ClassVar[Domain] = "group"
    per_token: ClassVar[bool] = False

    def normalise(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return the advantage of each completion, [S], or with `per_token` of each token, [N]; 0 where invalid."""
        raise NotImplementedError


class SequenceMultiplier(ObjectivePart):
    """Multiplies advantages by a factor for each completion; given advantages too."""

    stage: ClassVar[Stage] = "sequence_multiplier"

    def multiply(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return a factor for each completion, [S]."""
        raise NotImplementedError


class TokenShaper(ObjectivePart):
    """Shapes the advantage once per rollout batch, from statistics of the step-start policy."""

    stage: ClassVar[Stage] = "token_shaper"

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return the new token advantage, [N]."""
        raise NotImplementedError


class SampleFilter(ObjectivePart):
    """Drops completions: they leave numerator and denominator."""

    stage: ClassVar[Stage] = "sample_filter"

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return which completions stay, [S] bool."""
        raise NotImplementedError

    def rescore(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return the token advantage after filtering, [N]; most filters leave it alone."""
        assert batch.advantage is not None
        return batch.advantage


class ClipRange(ObjectivePart):
    """Gives each token its own clip; surrogates that clip read it through `clip_of`."""

    stage: ClassVar[Stage] = "clip_range"

    def clip(self, batch: TokenBatch, step: Step, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far the ratio may fall below and rise above 1, [N] each, given the surrogate's own ends."""
        raise NotImplementedError


class TokenWeight(ObjectivePart):
    """Shapes the advantage in every update, from statistics of the current policy; runs before masks."""

    stage: ClassVar[Stage] = "token_weight"

    def reweigh(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return the new token advantage, [N], detached."""
        raise NotImplementedError


class TokenMask(ObjectivePart):
    """Masks tokens. `drop`: they leave the denominator too; `detach`: zero policy loss, same denominator.

    `once`: evaluated once per rollout batch, on the step-start policy, instead of in every update; only for `drop`.
    """

    stage: ClassVar[Stage] = "token_mask"
    once: ClassVar[bool] = False

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return which tokens keep their gradient, [N] bool."""
        raise NotImplementedError

    def semantics(self) -> Literal["drop", "detach"]:
        raise NotImplementedError


class Surrogate(ObjectivePart):
    stage: ClassVar[Stage] = "surrogate"

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return the policy loss of each token, [N], differentiable in batch.logprob."""
        raise NotImplementedError


class Blend(ObjectivePart):
    """Sums policy losses of several (advantage, ratio rule) pairs: it is given the surrogate to call as it likes."""

    stage: ClassVar[Stage] = "blend"

    def blend(self, batch: TokenBatch, step: Step, loss: Callable[[TokenBatch], Tensor]) -> Tensor:
        """Return the policy loss of each token, [N]; `loss(batch)` is what it would have been without this part."""
        raise NotImplementedError


class TokenPenalty(ObjectivePart):
    stage: ClassVar[Stage] = "token_penalty"

    def penalty(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return what is added to the loss of each token, [N], differentiable."""
        raise NotImplementedError


class Regulariser(ObjectivePart):
    stage: ClassVar[Stage] = "regulariser"

    def regularise(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return a scalar added to the loss, differentiable in batch.entropy and batch.logprob."""
        raise NotImplementedError


class Aggregation(ObjectivePart):
    """Sums token losses: sum over t of mask_t * scale_t * x_t, where 1 / scale_t is the token's denominator."""

    stage: ClassVar[Stage] = "aggregation"

    def scale(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return 1 / denominator of each token, [N]; denominators span the step."""
        raise NotImplementedError

    def reduce(self, values: Tensor, batch: TokenBatch, step: Step) -> Tensor:
        """Return the scalar of [N] token losses."""
        assert batch.mask is not None
        kept = torch.where(batch.mask > 0, values, torch.zeros_like(values))  # an inf under the mask stays out
        return (kept * batch.mask * self.scale(batch, step)).sum()


class Controller(ObjectivePart):
    """Moves knobs between steps. Its state is plain JSON and part of every checkpoint."""

    stage: ClassVar[Stage] = "controller"

    def initial_state(self) -> dict[str, Any]:
        """Return the state before the first step."""
        return {}

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Return the next state and the knobs that change; `knobs` holds the values in force, steered ones included."""
        raise NotImplementedError

    def watch(self, batch: TokenBatch, outcome: Outcome, step: Step) -> None:
        """Write to `step.metrics` what `update` wants to know of an optimiser step: its tokens and its gradients."""

    def report(self, state: dict[str, Any]) -> dict[str, float]:
        """Return the figures of the last update, by metric name."""
        return {}

    def alert(self, state: dict[str, Any]) -> str:
        """Return one sentence a person should read about the last update, or ""."""
        return ""


def demand(value: Tensor | None, name: str, part: ObjectivePart) -> Tensor:
    """Return a statistic that must be there; raise ConfigError naming it where it is not."""
    if value is None:
        raise ConfigError(f"{name} is missing from the batch, and {part.type} reads it; add it", name)
    return value


def statistic(batch: TokenBatch, name: Statistic, part: ObjectivePart) -> Tensor:
    """Return a statistic of the table by name, [N] or [S]; raise ConfigError naming it where the batch lacks it."""
    known = getattr(batch, name) if STATISTICS[name].core else batch.extra.get(name)
    return demand(known, name, part)


class Reference(Settings):
    """Where a preset comes from."""

    title: str
    arxiv: str = ""
    year: int = 0
    url: str = ""


def paper(title: str, arxiv: str, year: int) -> Reference:
    """Return the reference of an arXiv paper."""
    return Reference(title=title, arxiv=arxiv, year=year, url=f"https://arxiv.org/abs/{arxiv}")


class Preset(Settings):
    """A list of parts named after its paper.

    `formula` is LaTeX. `assumed` says what had to be filled in where only an abstract or summary was at hand, and makes
    the preset experimental; `variants` says where released code and paper differ.
    """

    name: str
    title: str
    summary: str
    when: str = ""
    formula: str = ""
    reference: Reference | None = None
    confidence: Literal["code", "paper", "secondary", "reconstructed", "own"] = "paper"
    assumed: str = ""
    variants: str = ""
    family: str = ""  # set by the registry
    parts: list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _labelled(self) -> Preset:
        if self.confidence == "reconstructed" and not self.assumed:
            raise ValueError(f"preset {self.name} is reconstructed; say in assumed what was filled in")
        return self

    @property
    def experimental(self) -> bool:
        return bool(self.assumed)


@dataclass(frozen=True)
class Family:
    """Methods of one kind; each module declares PARTS and PRESETS."""

    title: str
    modules: tuple[ModuleType, ...]
