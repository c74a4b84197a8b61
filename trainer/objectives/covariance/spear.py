"""SPEAR: covariance clipping on a base without length and difficulty bias; self-imitation of stored successes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import group_mean, group_size, groups_of, valid_of
from trainer.objectives.schedule import progress
from trainer.objectives.stages import Blend, SampleFilter
from trainer.objectives.stock import CLIP_HIGHER, GROUP_NO_STD
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class LargestStdFilter(SampleFilter):
    """Groups with the widest rewards only (SPEAR).

    Keeps the share of the groups whose rewards have the largest standard deviation, rounded down and at least one;
    groups as wide as the last one kept stay too. Replayed completions are no group of this step and stay.
    """

    title: ClassVar[str] = "Widest groups only"
    paper: ClassVar[str] = "2509.22601"
    formula: ClassVar[str] = (
        r"\text{keep } g \text{ iff } \operatorname{std}_g(R) \ge q_{1-\rho}(\operatorname{std}(R))"
    )
    domain: ClassVar[Domain] = "step"
    type: Literal["largest_std_filter"] = "largest_std_filter"
    share: float = setting(0.75, help="Share of the groups that stay.", gt=0, le=1)

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        replayed = replayed_of(batch)
        batch = batch.replace(valid=valid_of(batch) & ~replayed)
        spread = group_mean((batch.reward - group_mean(batch.reward, batch)).square(), batch)
        size = group_size(batch)
        spread = (spread * size / (size - 1).clamp(min=1)).sqrt()  # unbiased; 0 for a lone completion
        dense, count = groups_of(batch)
        of_group = spread.new_zeros(count).scatter(0, dense, spread)
        fresh = torch.zeros(count, dtype=torch.bool, device=spread.device).scatter(0, dense[~replayed], True)
        ordered = of_group[fresh].sort(descending=True).values
        if not len(ordered):
            return torch.ones_like(replayed)
        threshold = ordered[max(1, int(self.share * len(ordered))) - 1]
        slack = 1e-6 * ordered[0]  # equal rewards in another order give another rounding
        return replayed | (spread >= threshold - slack)


class ReplayAdvantage(SampleFilter):
    """Advantage of replayed completions (SPEAR).

    What a stored success is worth today: its reward against the median of recent groups' means, over the median of
    their standard deviations. Replayed completions worth nothing any more are dropped. They form groups of their own.
    """

    title: ClassVar[str] = "Replay advantage"
    paper: ClassVar[str] = "2509.22601"
    formula: ClassVar[str] = (
        r"A_i = \frac{R_i - P_{50}(\text{group means})}{P_{50}(\text{group stds}) + \epsilon},\quad "
        r"\text{keep } A_i > 0"
    )
    domain: ClassVar[Domain] = "history"
    may_flip: ClassVar[bool] = True
    needs: ClassVar[frozenset[Statistic]] = frozenset({"replayed", "recent_mean", "recent_std"})
    type: Literal["replay_advantage"] = "replay_advantage"
    epsilon: float = setting(1e-6, help="Added to the standard deviation.", gt=0, le=1, advanced=True)

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        return (statistic(batch, "replayed", self) == 0) | (self._worth(batch) > 0)

    def rescore(self, batch: TokenBatch, step: Step) -> Tensor:
        replayed = batch.per_token(statistic(batch, "replayed", self) > 0)
        return torch.where(replayed, batch.per_token(self._worth(batch)), batch.need("advantage"))

    def _worth(self, batch: TokenBatch) -> Tensor:
        """Return the advantage a completion has against recent groups, [S]; 0 without a usable reward."""
        middle, spread = (statistic(batch, name, self) for name in ("recent_mean", "recent_std"))
        worth = (batch.reward - middle) / (spread.clamp(min=0) + self.epsilon)
        return torch.where(valid_of(batch), worth, torch.zeros_like(worth))


class ReplayLoss(Blend):
    """Loss of replayed completions (SPEAR).

    Fresh and replayed completions are two losses, each over its own completions; the second is multiplied by a
    coefficient that rises along a cosine while the run warms up.
    """

    title: ClassVar[str] = "Replay loss"
    paper: ClassVar[str] = "2509.22601"
    formula: ClassVar[str] = (
        r"L = L_{\text{fresh}} + \tfrac{c}{2}\bigl(1 - \cos(\pi \min(k / T_w, 1))\bigr) L_{\text{replayed}}"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"replayed"})
    requires: ClassVar[frozenset[str]] = frozenset({"replay_advantage"})
    type: Literal["replay_loss"] = "replay_loss"
    coefficient: float = setting(1.0, help="Weight of the replay loss.", ge=0, le=100, knob="replay_coefficient")
    warmup: int = setting(200, help="Steps until the weight is reached.", unit="steps", ge=0, le=1_000_000)

    def blend(self, batch: TokenBatch, step: Step, loss: Callable[[TokenBatch], Tensor]) -> Tensor:
        replayed = statistic(batch, "replayed", self) > 0
        weight = step.knobs["replay_coefficient"] * self.warmed(step.step)
        step.metrics["objective/replay_weight"] = weight
        counted = batch.per_sequence_sum(batch.need("mask")) > 0
        old, new = (int((counted & side).sum()) for side in (replayed, ~replayed))
        # the aggregation divides by both kinds of completions; each loss is over its own
        factor = torch.where(replayed, weight * (old + new) / max(old, 1), (old + new) / max(new, 1))
        return batch.per_token(factor.to(batch.logprob.dtype)) * loss(batch)

    def warmed(self, step: int) -> float:
        """Return the share of the weight that counts at this step, in [0, 1]."""
        return 0.5 * (1 - math.cos(math.pi * progress(step, self.warmup))) if self.warmup else 1.0


def replayed_of(batch: TokenBatch) -> Tensor:
    """Return which completions come from an earlier step, [S] bool; none where the batch does not say."""
    known = batch.extra.get("replayed")
    return torch.zeros_like(batch.group, dtype=torch.bool) if known is None else known > 0


PARTS = (LargestStdFilter, ReplayAdvantage, ReplayLoss)

COVARIANCE = {"type": "clip_cov", "share": 0.02, "lower": 1.0, "upper": 40.0}
BASE = [
    GROUP_NO_STD,
    {"type": "largest_std_filter"},
    COVARIANCE,
    CLIP_HIGHER | {"dual_clip": 0.0},
    {"type": "const_norm"},
]
REFERENCE = paper(
    "Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration", "2509.22601", 2025
)
VARIANTS = (
    "The authors' configuration has covariance bounds of its own for replayed tokens, but their code never reads them; "
    "both losses share one pair here too."
)
PRESETS = (
    Preset(
        name="spear",
        title="SPEAR without replay",
        summary="Two in a hundred tokens, drawn among those whose advantage and log-prob vary together most, get no "
        "gradient, which slows the fall of entropy. The base divides neither by the group's spread nor by length, and "
        "trains on the three quarters of the prompts with the widest rewards. The fading reward for tool calls is left "
        "out.",
        when="Agents and tools with long answers; the bounds suit rewards without normalisation.",
        formula=r"g_t = 0 \text{ on } \max(1, \lfloor 0.02\,n\rfloor) \text{ random tokens with } 1 < c_t < 40",
        reference=REFERENCE,
        confidence="code",
        variants=VARIANTS,
        parts=BASE,
    ),
    Preset(
        name="spear-replay",
        title="SPEAR with replay",
        summary="SPEAR's base and covariance clipping, and beside it a second loss on stored successes: their "
        "advantage is taken anew against recent groups, those worth nothing any more are dropped, and their weight "
        "rises along a cosine. Imitating what worked narrows the policy; the covariance clip on both losses works "
        "against it.",
        when="Rare successes that are soon forgotten; needs rollouts kept from earlier steps.",
        formula=ReplayLoss.formula,
        reference=REFERENCE,
        confidence="code",
        assumed="Covariances are centred over fresh and replayed tokens together; either loss is over its own "
        "completions; the coefficient of the replay loss is 1.",
        variants=VARIANTS + " With a decay in (0, 1] their code scales the stored advantage instead of taking it anew.",
        parts=[*BASE, {"type": "replay_advantage"}, {"type": "replay_loss"}],
    ),
)
