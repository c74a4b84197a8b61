"""QwenLong-L1.5's gate: while entropy is too high, only completions with a positive advantage are learnt from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from trainer.lazy import torch
from trainer.objectives.base import Domain, Observation, Statistic, Step, demand, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import (
    completion_mean,
    completion_tokens,
    equal_rewards,
    group_mean,
    sequence_advantage,
    step_mean,
    valid_of,
)
from trainer.objectives.stages import Controller, Normaliser, SampleFilter, TokenMask
from trainer.objectives.stock import CLIP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

FORMULA = r"""g_k = \begin{cases} 0 & H > H_{\text{high}} \\ 1 & H < H_{\text{low}} \\ g_{k-1} & \text{else}
 \end{cases}, \quad \text{keep } i \iff A_i \ge 0 \lor g_k = 1"""


def gate(before: float, entropy: float, low: float, high: float) -> float:
    """Return whether negative advantages count, 1 or 0: not above `high`, yes below `low`, between them as before."""
    if entropy > high:
        return 0.0
    return 1.0 if entropy < low else before


class NegativeGate(SampleFilter):
    """Gate of negative completions (QwenLong-L1.5).

    When the batch's entropy (mean over completions of their mean token entropy) rises above the upper edge, completions
    with a negative advantage are dropped; they come back when it has fallen below the lower edge. Between the edges the
    gate stays as it was.
    """

    title: ClassVar[str] = "Gate of negatives (QwenLong)"
    paper: ClassVar[str] = "2512.12967"
    formula: ClassVar[str] = FORMULA
    domain: ClassVar[Domain] = "history"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy"})
    type: Literal["negative_gate"] = "negative_gate"
    low: float = setting(
        0.15, help="Below this entropy negatives are learnt from.", unit="nats", ge=0, le=20, knob="entropy_low"
    )
    high: float = setting(
        0.3, help="Above this entropy negatives are dropped.", unit="nats", ge=0, le=20, knob="entropy_high"
    )
    open: bool = setting(
        True, help="Whether negatives are learnt from at the start.", advanced=True, knob="negative_gate"
    )

    @model_validator(mode="after")
    def _ordered(self) -> NegativeGate:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high, {self.high}; lower it")
        return self

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        means = completion_mean(statistic(batch, "old_entropy", self), batch)
        entropy = step_mean(means, completion_tokens(batch) > 0)
        step.metrics["objective/sample_entropy"] = float(entropy)
        knobs = step.knobs
        if gate(knobs["negative_gate"], float(entropy), knobs["entropy_low"], knobs["entropy_high"]):
            return torch.ones_like(batch.group, dtype=torch.bool)
        return sequence_advantage(batch) >= 0

    def band(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float]:
        return knobs.get("entropy_low", self.low), knobs.get("entropy_high", self.high)

    def course(self, x: float) -> tuple[float, float]:
        return self.low, self.high


class NegativeGating(Controller):
    """Memory of the gate (QwenLong-L1.5).

    Carries the state of the gate of negatives from step to step, so that it opens and closes at different edges.
    """

    title: ClassVar[str] = "Memory of the gate (QwenLong)"
    paper: ClassVar[str] = "2512.12967"
    formula: ClassVar[str] = FORMULA
    domain: ClassVar[Domain] = "history"
    requires: ClassVar[frozenset[str]] = frozenset({"negative_gate"})
    moves: ClassVar[frozenset[str]] = frozenset({"negative_gate"})
    type: Literal["negative_gating"] = "negative_gating"

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        entropy = seen.metrics.get("objective/sample_entropy", seen.entropy)
        if not math.isfinite(entropy):
            return state, {}
        return state, {
            "negative_gate": gate(knobs["negative_gate"], entropy, knobs["entropy_low"], knobs["entropy_high"])
        }


class UncertainNegatives(TokenMask):
    """Mask of uncertain negatives (QwenLong-L1.5, before its gate).

    Tokens with a negative advantage get no gradient where their entropy, or that of their completion on average, is
    above an edge. The denominator stays.
    """

    title: ClassVar[str] = "Uncertain negatives"
    paper: ClassVar[str] = "2512.12967"
    formula: ClassVar[str] = r"m_{it} = \mathbb{1}[A_{it} \ge 0 \lor H_{it} \le \tau]"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy"})
    type: Literal["uncertain_negatives"] = "uncertain_negatives"
    select: Literal["token", "completion"] = setting("token", help="Whose entropy is compared with the edge.")
    edge: float = setting(1.0, help="Entropy above which negatives get no gradient.", unit="nats", ge=0, le=20)

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        entropy = demand(batch.entropy, "entropy", self)
        if self.select == "completion":
            entropy = batch.per_token(completion_mean(entropy, batch))
        return (batch.need("advantage") >= 0) | (entropy <= self.edge)

    def semantics(self) -> Literal["drop", "detach"]:
        return "detach"


class TaskNorm(Normaliser):
    """Advantage with the std of the task (QwenLong-L1.5).

    (reward - mean of the group) / (std of all rewards of the task in this step + epsilon). Where a run trains one task
    that is the std of the batch.
    """

    title: ClassVar[str] = "Task advantage"
    paper: ClassVar[str] = "2512.12967"
    formula: ClassVar[str] = (
        r"A_i = \frac{r_i - \operatorname{mean}_g r}{\operatorname{std}_{\text{task}} r + \epsilon}"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"task"})
    type: Literal["task_norm"] = "task_norm"
    epsilon: float = setting(1e-6, help="Added to the std.", gt=0, le=1, advanced=True)

    def normalise(self, batch: TokenBatch, step: Step) -> Tensor:
        # float64: a float32 mean would give a group of equal rewards an advantage
        valid = valid_of(batch)
        reward = torch.where(valid, batch.reward.double(), 0.0)
        centred = torch.where(valid & ~equal_rewards(batch), reward - group_mean(reward, batch), 0.0)
        return (centred / (self._std(reward, valid, batch) + self.epsilon)).to(batch.reward.dtype)

    def _std(self, reward: Tensor, valid: Tensor, batch: TokenBatch) -> Tensor:
        """Return the unbiased std of the valid rewards of each completion's task, [S]; 1 for a lone one."""
        kinds, task = torch.unique(statistic(batch, "task", self), return_inverse=True)

        def total(values: Tensor) -> Tensor:
            found = values.new_zeros(kinds.shape[0]).index_add(0, task, torch.where(valid, values, 0.0))
            return found[task]

        number = total(torch.ones_like(reward))
        square = total((reward - total(reward) / number.clamp(min=1)).square())
        return torch.where(number > 1, (square / (number - 1).clamp(min=1)).sqrt(), 1.0)


PARTS = (NegativeGate, NegativeGating, UncertainNegatives, TaskNorm)
PRESETS = (
    Preset(
        name="qwenlong-aepo",
        title="QwenLong-L1.5 AEPO",
        summary="While entropy is above an upper edge only completions with a positive advantage are learnt from, "
        "which lowers it; below a lower edge the negative ones come back. Between the edges nothing changes.",
        when="On-policy training whose entropy rises or swings; the authors saw 0.1 to 0.3 nats.",
        formula=FORMULA,
        reference=paper(
            "QwenLong-L1.5: Post-Training Recipe for Long-Context Reasoning and Memory Management", "2512.12967", 2025
        ),
        confidence="paper",
        assumed="The edges of 0.15 and 0.3 nats: the authors do not publish theirs.",
        variants="The released snippet drops every completion but the rewarded ones while entropy is between the "
        "edges, against its own comment; the paper's rule is the one here.",
        parts=[{"type": "task_norm"}, {"type": "negative_gate"}, CLIP, TOKENS, {"type": "negative_gating"}],
    ),
)
