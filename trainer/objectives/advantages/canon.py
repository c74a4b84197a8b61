"""CANON: compare responses across and within the halves that a metric divides their group into."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from trainer.lazy import torch
from trainer.objectives.advantages.responses import answered, response_entropy, start_logprob
from trainer.objectives.base import Domain, Statistic, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_mean, completion_tokens, groups_of, step_mean, valid_of
from trainer.objectives.stages import Normaliser
from trainer.objectives.stock import CLIP
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class Canon(Normaliser):
    """Conditional advantage (CANON).

    A group is sorted by a metric and cut in the middle. The inter part compares a response with the mean of the other
    half, so the half that does better grows, whichever it is; the intra part compares it with its own half. An equal
    mixture of even halves is Dr. GRPO. No std. A group of one is compared with 0.
    """

    title: ClassVar[str] = "Conditional advantage (CANON)"
    paper: ClassVar[str] = "2509.23962"
    formula: ClassVar[str] = (
        r"A_i = \mu\,\bigl(r_i - \bar r_{\text{other half}}\bigr) + (1-\mu)\,\bigl(r_i - \bar r_{\text{own half}}\bigr)"
    )
    domain: ClassVar[Domain] = "group"
    type: Literal["canon"] = "canon"
    metric: Literal["entropy", "length", "random"] = setting(
        "entropy",
        help="What the group is sorted by: mean entropy, length, or nothing (the control: first half as drawn).",
    )
    mix: float = setting(
        1.0,
        help="Weight of the comparison between the halves; the rest goes to that inside a half. Steering it overrides "
        "the schedule from then on.",
        ge=0,
        le=1,
        knob="canon_mix",
    )
    schedule: Literal["constant", "accuracy", "cosine"] = setting(
        "constant", help="Whether the mixture stays, falls as rewards rise, or follows cosines with restarts."
    )
    order: Literal["inter_first", "intra_first"] = setting(
        "inter_first",
        help="Which comparison the scheduled falling weight belongs to.",
        show_if={"schedule": ["accuracy", "cosine"]},
    )
    alpha: float = setting(1.0, help="Factor on the upper half's rival; below 1 it prefers a half.", ge=0, le=10)
    beta: float = setting(0.0, help="Given to the upper half, taken from the lower.", ge=-10, le=10)
    high: float = setting(0.6, help="Weight at the top of a cosine.", ge=0, le=1, show_if={"schedule": "cosine"})
    low: float = setting(0.0, help="Weight at the foot of a cosine.", ge=0, le=1, show_if={"schedule": "cosine"})
    length: int = setting(
        150,
        help="Steps of all cosines, warm-up included.",
        unit="steps",
        ge=2,
        le=1_000_000,
        show_if={"schedule": "cosine"},
    )
    warmup: int = setting(
        30,
        help="Steps of linear rise before the first cosine.",
        unit="steps",
        ge=0,
        le=1_000_000,
        show_if={"schedule": "cosine"},
    )
    cycles: int = setting(3, help="Number of cosines.", ge=1, le=1000, show_if={"schedule": "cosine"})
    divisor: float = setting(
        1.0,
        help="Number the advantage is divided by; leave it 1 where the aggregation divides by a length.",
        gt=0,
        le=10_000_000,
        advanced=True,
    )

    @model_validator(mode="after")
    def _long_enough(self) -> Canon:
        if self.length - self.warmup < self.cycles:
            raise ValueError(
                f"length is {self.length}, too short for {self.warmup} steps of warmup and {self.cycles} cycles; "
                "raise it"
            )
        return self

    def reads(self) -> frozenset[Statistic]:
        ties = frozenset[Statistic]({"old_logprob"})  # equal metrics are ordered by it
        return {"entropy": ties | {"old_entropy"}, "length": ties}.get(self.metric, frozenset())

    def normalise(self, batch: TokenBatch, step: Step) -> Tensor:
        counted = answered(batch) if self.metric == "entropy" else batch
        valid, (dense, groups) = valid_of(counted), groups_of(counted)
        reward = torch.where(valid, batch.reward.double(), 0.0)
        number = torch.bincount(dense[valid], minlength=groups)  # [P] responses to compare
        upper = self._rank(counted, dense) >= (number // 2)[dense]  # [S]
        key = dense * 2 + upper.long()
        total = reward.new_zeros(2 * groups).index_add(0, key, reward * valid)
        size = torch.bincount(key[valid], minlength=2 * groups)
        lone = (torch.bincount(dense, minlength=groups) == 1)[dense]
        mean = total / size.clamp(min=1)
        own, other = (torch.where(lone, 0.0, mean[place]) for place in (key, key ^ 1))
        inter = self._inter(reward, other, upper)
        mix = self._mix(reward, valid, step)
        advantage = (mix * inter + (1 - mix) * (reward - own)) / self.divisor
        comparable = valid & (lone | (number > 1)[dense])
        return torch.where(comparable, advantage, 0.0).to(batch.reward.dtype)

    def _inter(self, reward: Tensor, other: Tensor, upper: Tensor) -> Tensor:
        """Return the comparison with the other half, [S].

        alpha multiplies the operand that belongs to one half throughout: the lower half's rewards under entropy, the
        upper half's under length, as in the authors' code.
        """
        scaled = upper if self.metric == "length" else ~upper
        ours, theirs = torch.where(scaled, self.alpha, 1.0), torch.where(scaled, 1.0, self.alpha)
        return ours * reward - theirs * other + torch.where(upper, self.beta, -self.beta)

    def _rank(self, batch: TokenBatch, dense: Tensor) -> Tensor:
        """Return the ascending rank of each response by the metric among the valid ones of its group, [S] from 0.

        Equal metrics are ordered by mean log-prob, so that the order in which responses were drawn does not matter.
        """
        order = torch.argsort(completion_mean(start_logprob(batch), batch), stable=True)
        if self.metric == "random":
            order = torch.arange(batch.sequences, device=dense.device)
        else:
            metric = response_entropy(batch, self) if self.metric == "entropy" else completion_tokens(batch)
            order = order[torch.argsort(metric[order], stable=True)]
        order = order[torch.argsort((~valid_of(batch))[order].long(), stable=True)]
        order = order[torch.argsort(dense[order], stable=True)]
        place = torch.empty_like(order)
        place[order] = torch.arange(order.shape[0], device=order.device)
        first = torch.cumsum(torch.bincount(dense), 0) - torch.bincount(dense)
        return place - first[dense]

    def _mix(self, reward: Tensor, valid: Tensor, step: Step) -> float:
        """Return the weight of the inter part in this step, in [0, 1]."""
        mix = step.knobs.get("canon_mix", self.mix)
        if self.schedule != "constant" and mix == self.mix:
            falling = self._cosine(step.step) if self.schedule == "cosine" else 1 - float(step_mean(reward, valid))
            falling = min(max(falling, 0.0), 1.0)
            mix = falling if self.order == "inter_first" else 1 - falling
        step.metrics["objective/canon_mix"] = mix
        return mix

    def _cosine(self, step: int) -> float:
        if step < self.warmup:
            return self.high * (step + 1) / self.warmup
        cycle = (self.length - self.warmup) // self.cycles
        x = (step - self.warmup) % cycle / cycle
        return self.low + 0.5 * (self.high - self.low) * (1 + math.cos(math.pi * x))


REFERENCE = paper(
    "Conditional Advantage Estimation for Reinforcement Learning in Large Reasoning Models", "2509.23962", 2025
)
AGGREGATION = {"type": "const_norm"}

PARTS = (Canon,)
PRESETS = (
    Preset(
        name="canon",
        title="CANON, by entropy",
        summary="Each group is cut into a calmer and a livelier half, and a response is compared with the mean of the "
        "half it is not in. Entropy goes up where lively responses do better and down where calm ones do: rewards "
        "decide, no coefficient.",
        when="You do not know whether more entropy helps the task.",
        formula=Canon.formula,
        reference=REFERENCE,
        confidence="code",
        parts=[{"type": "canon"}, CLIP, AGGREGATION],
    ),
    Preset(
        name="canon-length",
        title="CANON, by length",
        summary="As CANON, with the group cut into a shorter and a longer half. Length follows what does better; "
        "entropy is not looked at.",
        when="You do not know whether longer answers help; alpha below 1 prefers short ones.",
        formula=Canon.formula,
        reference=REFERENCE,
        confidence="code",
        parts=[{"type": "canon", "metric": "length"}, CLIP, AGGREGATION],
    ),
    Preset(
        name="canon-dynamic",
        title="CANON, annealed by accuracy",
        summary="As CANON by entropy, with the weight of the comparison between halves 1 minus the mean reward: hard "
        "tasks explore which half does better, solved ones refine inside a half.",
        when="Rewards are 0 or 1 and start low.",
        formula=r"\mu = 1 - \bar r",
        reference=REFERENCE,
        confidence="code",
        variants="The repository's function of this schedule gives the falling weight to the comparison inside a half "
        "(order = intra_first); the paper has both orders.",
        parts=[{"type": "canon", "schedule": "accuracy"}, CLIP, AGGREGATION],
    ),
)
