"""DSDR: right answers unlike the others are rewarded more, and held more open token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.advantages.responses import answered
from trainer.objectives.base import Domain, ObjectivePart, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import log_ratio
from trainer.objectives.reductions import completion_mean, group_extreme, group_sum, groups_of, valid_of
from trainer.objectives.rewards.likeness import cosines, rivals
from trainer.objectives.stages import Regulariser, RewardShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

NEEDS: frozenset[Statistic] = frozenset({"embedding", "formula_novelty", "correct"})


def ceiling_setting() -> float:
    """Declare the largest diversity that counts; both scales have it."""
    return setting(0.5, help="Largest diversity that counts.", ge=0, le=1)


def diversity(batch: TokenBatch, part: ObjectivePart, ceiling: float) -> Tensor:
    """Return how unlike the other responses of its group each one is, [S] in [0, ceiling].

    Half is the mean distance of embeddings, (1 - cosine) / 2, half the share of formulas no other response has; a
    response without others has 0 for the first half.
    """
    pairs = rivals(batch)
    distance = torch.where(pairs, (1 - cosines(statistic(batch, "embedding", part))) / 2, 0.0)
    apart = distance.sum(1) / pairs.sum(1).clamp(min=1)
    return ((apart + statistic(batch, "formula_novelty", part)) / 2).clamp(0, ceiling)


class DsdrReward(RewardShaper):
    """Diversity reward (DSDR, global scale).

    A right answer gets a small reward for how unlike the group's other answers its text and its formulas are.
    """

    title: ClassVar[str] = "Diversity reward (DSDR)"
    paper: ClassVar[str] = "2602.19895"
    formula: ClassVar[str] = r"\tilde r_i = r_i + \lambda_d\,\min(d_i, \sigma)\,[\text{right}]"
    domain: ClassVar[Domain] = "group"
    needs: ClassVar[frozenset[Statistic]] = NEEDS
    type: Literal["dsdr_reward"] = "dsdr_reward"
    weight: float = setting(0.001, help="Reward for a diversity of 1.", ge=0, le=10)
    ceiling: float = ceiling_setting()

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        right = valid_of(batch) & (statistic(batch, "correct", self) > 0)
        return torch.where(right, batch.reward + self.weight * diversity(batch, self, self.ceiling), batch.reward)


class DsdrLocal(Regulariser):
    """Local entropy of right answers (DSDR, local scale).

    The importance-weighted mean of -log-prob over the tokens of a right answer estimates its entropy; right answers of
    a group share it out by a softmax of their diversity, so unusual ways to the goal are held open most. The mean over
    groups is maximised; the gradient runs through ratio and log-prob.
    """

    title: ClassVar[str] = "Local entropy of right answers (DSDR)"
    paper: ClassVar[str] = "2602.19895"
    formula: ClassVar[str] = (
        r"-\lambda_\ell J_{\text{loc}},\quad J_{\text{loc}} = -\sum_{i\ \text{right}} w_i \tfrac1{T_i}"
        r"\sum_t \rho_{it}\log\pi_{it},\quad w = \operatorname{softmax}(\tau\,d)"
    )
    domain: ClassVar[Domain] = "group"
    needs: ClassVar[frozenset[Statistic]] = NEEDS | {"old_logprob"}
    type: Literal["dsdr_local"] = "dsdr_local"
    coefficient: float = setting(
        0.001,
        help="Weight of the local term; the largest tried, 0.01, was unstable.",
        ge=0,
        le=10,
        knob="dsdr_local_coefficient",
    )
    temperature: float = setting(2.0, help="How much more unusual answers get; 0 shares equally.", ge=0, le=1000)
    ceiling: float = ceiling_setting()

    def regularise(self, batch: TokenBatch, step: Step) -> Tensor:
        coefficient = step.knobs.get("dsdr_local_coefficient", self.coefficient)
        surprise = -log_ratio(batch).exp() * batch.logprob
        each = completion_mean(surprise, batch)
        counted = answered(batch)
        dense, _ = groups_of(batch)
        groups = max(int(torch.unique(dense[valid_of(counted)]).numel()), 1)
        local = (self._share(counted) * each).sum() / groups
        step.metrics["objective/dsdr_local"] = float(local.detach())
        return -coefficient * local

    def _share(self, batch: TokenBatch) -> Tensor:
        """Return the share of each right answer in its group, [S]; 0 for others."""
        right = valid_of(batch) & (statistic(batch, "correct", self) > 0)
        score = self.temperature * diversity(batch, self, self.ceiling)
        among = batch.replace(valid=right)
        power = torch.where(right, (score - group_extreme(score, among, largest=True)).exp(), 0.0)
        return power / group_sum(power, among).clamp(min=1)


PARTS = (DsdrReward, DsdrLocal)
PRESETS = (
    Preset(
        name="dsdr",
        title="DSDR",
        summary="Right answers that differ from the group's others in wording and formulas get a little more reward, "
        "and a term that keeps the entropy of right answers up, most for the unusual ones. Different ways to the goal "
        "survive, and each stays open.",
        when="Tasks with several solutions, written with formulas; needs a sentence encoder.",
        formula=DsdrReward.formula + r",\quad J = J_{\text{GRPO}}(\tilde r) + \lambda_\ell J_{\text{loc}}",
        reference=paper(
            "DSDR: Dual-Scale Diversity Regularization for Exploration in LLM Reasoning", "2602.19895", 2026
        ),
        confidence="paper",
        assumed="The ceiling of diversity (0.5) and the temperature of the shares (2) were not in the part that was "
        "read; the local term is averaged over groups.",
        parts=[{"type": "dsdr_reward"}, GROUP, CLIP, TOKENS, {"type": "dsdr_local"}],
    ),
)
