"""Parts, knobs and what flows between them: the frame every objective fits into.

An objective is a list of parts, at most a few to a stage, run in the order of `STAGES`. Everything is computed over
the whole optimiser step from [N] vectors (log-prob, entropy, moments); `Objective.apply` differentiates the step's
loss with respect to log-prob and entropy only, and the loop carries these two gradients through the model micro-batch
by micro-batch. So no result depends on micro-batch size or process count, and `evaluate` is the same code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.errors import ConfigError
from trainer.part import Part
from trainer.statistics import STATISTICS, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

Stage = Literal[
    "prompting",
    "rollout",
    "decoding",
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
    special_ids: tuple[int, ...] = ()  # the tokenizer's special tokens, ascending; only while completions are planned
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
    reduces over; `may_flip` says that a token's advantage may change sign; `blind` says that the loss's gradients do
    not depend on the policy statistics it reads while the policy is the one that sampled (every ratio 1).
    """

    stage: ClassVar[Stage]
    formula: ClassVar[str] = ""
    domain: ClassVar[Domain] = "token"
    may_flip: ClassVar[bool] = False
    blind: ClassVar[bool] = False
    needs: ClassVar[frozenset[Statistic]] = frozenset()
    incompatible: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset()
    moves: ClassVar[frozenset[str]] = frozenset()

    def remarks(self) -> list[str]:
        """Return what people should know of these settings before a run starts, one sentence each."""
        return []

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


def demand(value: Tensor | None, name: str, part: ObjectivePart) -> Tensor:
    """Return a statistic that must be there; raise ConfigError naming it where it is not."""
    if value is None:
        raise ConfigError(f"{name} is missing from the batch, and {part.type} reads it; add it", name)
    return value


def statistic(batch: TokenBatch, name: Statistic, part: ObjectivePart) -> Tensor:
    """Return a statistic of the table by name, [N] or [S]; raise ConfigError naming it where the batch lacks it."""
    known = getattr(batch, name) if STATISTICS[name].core else batch.extra.get(name)
    return demand(known, name, part)
