"""The stages of the pipeline: one base class for each, saying what its parts are given and what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import AuxiliaryPlan, Domain, ObjectivePart, Observation, Outcome, Stage, Step

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch
    from trainer.rollout.base import SamplerSpec, Scene, Strategy
    from trainer.template import Template


class Prompting(ObjectivePart):
    """Words a prompt otherwise each time it is drawn; the whole group shares the wording."""

    stage: ClassVar[Stage] = "prompting"

    def templates(self) -> dict[str, Template]:
        """Return the wordings by name."""
        raise NotImplementedError


class Rollout(ObjectivePart):
    """Decides which completions are generated, from which prefix and how many, and which of them train."""

    stage: ClassVar[Stage] = "rollout"

    def strategy(self, scene: Scene, step: Step) -> Strategy:
        """Return the strategy of one step of one process."""
        raise NotImplementedError

    def unfit(self, samples: int) -> str:
        """Return why groups of so many samples do not do, as "field: one sentence with the fix", or ""."""
        return ""

    def most(self, samples: int) -> int:
        """Return how many completions of a prompt can enter a step where `samples` are asked for."""
        return samples

    def at_once(self, samples: int) -> int:
        """Return how many completions of a prompt one wave asks for at most."""
        return self.most(samples)

    def cost(self, samples: int) -> tuple[float, float]:
        """Return how many completions are generated at least and at most, over prompts times samples."""
        return 1.0, 1.0

    def beyond_plain(self) -> tuple[str, str] | None:
        """Return what it takes besides plain draws, log-probs and entropies, and how to do without; None for nothing.

        Both are halves of a sentence: "oversampling draws hotter", "set hotter to 1 in oversampling".
        """
        return None


class Decoding(ObjectivePart):
    """Changes the distribution tokens are drawn from; what the policy is compared with stays the policy itself.

    `leaves_out` says that tokens which the policy could draw cannot come.
    """

    stage: ClassVar[Stage] = "decoding"
    leaves_out: ClassVar[bool] = False

    def sampler(self, given: SamplerSpec, sample: int, samples: int, step: Step) -> SamplerSpec:
        """Return how the sample of this number among the group's is drawn, given how it would be without this part."""
        raise NotImplementedError

    def measure(self, batch: TokenBatch, step: Step) -> None:
        """Write to `step.metrics` what later steps' sampling wants to know of this rollout batch, all its tokens."""


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
