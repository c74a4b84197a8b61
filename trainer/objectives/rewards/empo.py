"""EMPO: the reward is how many of a prompt's answers agree; no reference answer is needed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import group_extreme, group_size, group_sum
from trainer.objectives.rewards.replaced import others
from trainer.objectives.rewards.vote import majority, votes
from trainer.objectives.stages import RewardShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

FORMULA = r"r_i = \frac{|C(i)|}{G}"


class EMPOReward(RewardShaper):
    """Agreement reward (EMPO).

    The task's reward is replaced by the share of the group's completions that give the same answer. Math: no answer
    gives 0, and a group in which all answers differ gets 0. Free form: no answer gives -0.5, an answer copied from the
    question 0, and a group without any answer that a fifth agrees on 0. Voting: 1 for the most frequent answer, else 0.
    Completions without an answer agree with each other and so take up mass.
    """

    title: ClassVar[str] = "Agreement reward (EMPO)"
    paper: ClassVar[str] = "2504.05812"
    formula: ClassVar[str] = FORMULA
    domain: ClassVar[Domain] = "group"
    incompatible: ClassVar[frozenset[str]] = others("empo")
    type: Literal["empo"] = "empo"
    kind: Literal["math", "free_form", "voting"] = setting("math", help="What kind of answers are compared.")
    variant: Literal["described", "released"] = setting(
        "described",
        help="How a group of all different answers is told: by counting, or as the released code does, by a sum of "
        "floating-point numbers that misses some group sizes.",
        advanced=True,
        show_if={"kind": "math"},
    )
    no_answer: float = setting(
        -0.5, help="Reward without an answer.", ge=-100, le=0, advanced=True, show_if={"kind": "free_form"}
    )
    agreement: float = setting(
        0.2,
        help="Share of the group that has to agree on some answer for the group to count.",
        ge=0,
        le=1,
        advanced=True,
        show_if={"kind": "free_form"},
    )

    def reads(self) -> frozenset[Statistic]:
        return frozenset({"answer", "copied"} if self.kind == "free_form" else {"answer"})

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        answer = statistic(batch, "answer", self)
        if self.kind == "voting":
            return majority(answer, batch).to(batch.reward.dtype)
        count = votes(answer, batch).to(batch.reward.dtype)
        share = count / group_size(batch).clamp(min=1)
        if self.kind == "math":
            return torch.where((answer < 0) | self._all_differ(count, batch), 0.0, share)
        return self._free_form(answer, count, share, batch)

    def _all_differ(self, count: Tensor, batch: TokenBatch) -> Tensor:
        """Return which completions are in a group of answers that are all different, [S] bool."""
        differ = group_extreme(count, batch, largest=True) <= 1
        if self.variant == "described":
            return differ
        sizes = group_size(batch)
        missed = [size for size in sizes[differ].unique().tolist() if not _reaches_log(round(size))]
        return differ & ~torch.isin(sizes, sizes.new_tensor(missed))

    def _free_form(self, answer: Tensor, count: Tensor, share: Tensor, batch: TokenBatch) -> Tensor:
        clusters = group_sum(1 / count.clamp(min=1), batch)  # every cluster adds up to 1
        scattered = (group_extreme(share, batch, largest=True) < self.agreement) & (clusters > 1.5)
        copied = statistic(batch, "copied", self) > 0.5
        reward = torch.where(copied | scattered, 0.0, share)
        return torch.where(answer < 0, self.no_answer, reward)


def _reaches_log(size: int) -> bool:
    """Return whether numpy's entropy of `size` different answers reaches log(size), as it would without rounding."""
    import numpy

    if size < 1:
        return True
    share = numpy.full(size, 1 / size)
    return bool(-(share * numpy.log(share)).sum() >= math.log(size))


PARTS = (EMPOReward,)
PRESETS = (
    Preset(
        name="empo",
        title="EMPO",
        summary="Unsupervised: a completion is rewarded by the share of its group that gives the same answer, so the "
        "policy learns to agree with itself. Semantic entropy falls by design, and token entropy with it.",
        when="Prompts without reference answers. The later release uses a sequence-level ratio with clips of 3e-4 and "
        "4e-4 and 16 completions a prompt. The free-form kind also gives nothing for answers that repeat the question.",
        formula=FORMULA,
        reference=paper(
            "Right Question is Already Half the Answer: Fully Unsupervised LLM Reasoning Incentivization",
            "2504.05812",
            2025,
        ),
        confidence="code",
        variants="Released: the test for a group of all different answers compares a floating-point sum with log G and "
        "misses many group sizes (3, 6, 7, 10, 14, ...); the rewards are equal then, so no advantage differs.",
        parts=[{"type": "empo"}, GROUP, CLIP, TOKENS],
    ),
)
