"""TTRL: the majority's answer is taken for the right one, and part of the votes is learnt from."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import group_rank, group_size, group_sum, valid_of
from trainer.objectives.rewards.draws import draws
from trainer.objectives.rewards.replaced import others
from trainer.objectives.rewards.vote import majority
from trainer.objectives.stages import RewardShaper, SampleFilter
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

FORMULA = r"r_i = \mathbb{1}\!\left[a_i = \operatorname{majority}(a_1, \dots, a_n)\right]"


class MajorityVote(RewardShaper):
    """Majority vote (TTRL).

    The task's reward is replaced by 1 for completions whose answer is the most frequent of their group, else 0. A
    completion without an answer has no vote; where several answers are equally frequent, the one that came first wins.
    """

    title: ClassVar[str] = "Majority vote (TTRL)"
    paper: ClassVar[str] = "2504.16084"
    formula: ClassVar[str] = FORMULA
    domain: ClassVar[Domain] = "group"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"answer"})
    incompatible: ClassVar[frozenset[str]] = others("majority_vote")
    type: Literal["majority_vote"] = "majority_vote"

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        return majority(statistic(batch, "answer", self), batch).to(batch.reward.dtype)


class SubSample(SampleFilter):
    """Learn from part of the votes.

    Of each group a share of the completions stays in the loss; the others have voted and leave the denominator. The
    draw repeats with the run's seed and does not depend on the order of completions. Group statistics are those of all
    votes. Completions of one trajectory stay together.
    """

    title: ClassVar[str] = "Sub-sample"
    paper: ClassVar[str] = "2504.16084"
    formula: ClassVar[str] = (
        r"\mathcal{L} \text{ over } i \in S_g \subset g,\quad |S_g| = \max(1, \mathrm{round}(s\,|g|))"
    )
    domain: ClassVar[Domain] = "group"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"trajectory"})
    type: Literal["sub_sample"] = "sub_sample"
    share: float = setting(0.5, help="Share of each group that is learnt from, at least one completion.", gt=0, le=1)
    choose: Literal["random", "first"] = setting(
        "random", help="Draw the completions, or take those that were sampled first.", advanced=True
    )

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        trajectory = statistic(batch, "trajectory", self)
        key = draws(step, trajectory, purpose=1) if self.choose == "random" else trajectory.double()
        wanted = (self.share * group_size(batch)).round().clamp(min=1).long()
        last = group_sum(torch.where(group_rank(key, batch) == wanted - 1, key, 0.0), batch)
        return valid_of(batch) & (key <= last)


PARTS = (MajorityVote, SubSample)
PRESETS = (
    Preset(
        name="ttrl",
        title="TTRL",
        summary="Unsupervised: the most frequent answer of a group is taken for the right one, and half of the votes "
        "is learnt from. The policy sharpens towards what it mostly says, so entropy falls.",
        when="Prompts without reference answers, of which the model already solves many. The authors draw 64 votes, "
        "learn from 32 and use a learning rate of 5e-7.",
        formula=FORMULA,
        reference=paper("TTRL: Test-Time Reinforcement Learning", "2504.16084", 2025),
        confidence="code",
        variants="The authors normalise over the completions learnt from; here the group's mean and std are those of "
        'all votes. Their choice is the first ones; choose = "first" does that.',
        parts=[
            {"type": "majority_vote"},
            GROUP,
            {"type": "sub_sample"},
            CLIP,
            {"type": "kl_penalty", "coefficient": 1e-3},
            TOKENS,
        ],
    ),
)
