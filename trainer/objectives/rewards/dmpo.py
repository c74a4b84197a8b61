"""DMPO: a divergence between the reward's distribution over a group and the policy's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import (
    completion_mean,
    completion_tokens,
    group_extreme,
    group_size,
    group_sum,
    valid_of,
)
from trainer.objectives.stages import Regulariser
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

FORMULA = r"""L = L_{\text{GRPO}} + \lambda\, \mathrm{KL}\Big( \operatorname{softmax}_i(r_i / \beta) \,\Big\|\,
 \operatorname{softmax}_i\big(\tfrac{1}{|o_i|} \log \pi(o_i)\big) \Big)"""


class GroupMatch(Regulariser):
    """Distribution matching (DMPO).

    Within each group two distributions over its completions are compared: one from the rewards, one from the mean
    log-probs. Their divergence, averaged over groups, is added to the loss; it keeps every rewarded completion alive.
    """

    title: ClassVar[str] = "Distribution matching (DMPO)"
    paper: ClassVar[str] = "2605.19461"
    formula: ClassVar[str] = FORMULA
    domain: ClassVar[Domain] = "group"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"logprob"})
    type: Literal["group_match"] = "group_match"
    coefficient: float = setting(0.1, help="Weight of the divergence in the loss.", ge=0, le=100)
    temperature: float = setting(1.0, help="Reward difference that changes the odds by e.", gt=0, le=1000)

    def regularise(self, batch: TokenBatch, step: Step) -> Tensor:
        usable = valid_of(batch) & (completion_tokens(batch) > 0)
        batch = batch.replace(valid=usable)
        reward = torch.where(usable, batch.reward, 0.0).to(batch.logprob.dtype)
        wanted = log_share(reward / self.temperature, batch)
        found = log_share(completion_mean(batch.logprob, batch), batch)
        size = group_size(batch).clamp(min=1)
        groups = torch.where(usable, 1 / size, 0.0).sum().clamp(min=1)
        terms = torch.where(usable, wanted.exp() * (wanted - found), 0.0)
        divergence = terms.sum() / groups
        step.metrics["objective/group_divergence"] = float(divergence.detach())
        return self.coefficient * divergence


def log_share(values: Tensor, batch: TokenBatch) -> Tensor:
    """Return the log of each completion's softmax over the valid ones of its group, [S]; 0 for invalid ones."""
    valid = valid_of(batch)
    top = torch.where(valid, group_extreme(values.detach(), batch, largest=True), 0.0)
    centred = torch.where(valid, values - top, 0.0)
    total = torch.where(valid, group_sum(centred.exp(), batch), 1.0)
    return centred - total.log()


PARTS = (GroupMatch,)
PRESETS = (
    Preset(
        name="dmpo",
        title="DMPO",
        summary="GRPO plus a divergence that leads the policy's odds within a group towards the rewards' odds: equally "
        "good completions are to be equally likely, which slows the collapse onto one of them.",
        when="Groups with several right answers.",
        formula=FORMULA,
        reference=paper("DMPO", "2605.19461", 2026),
        confidence="reconstructed",
        assumed="The form is second-hand; weight 0.1, reward temperature 1 and the mean over groups are ours.",
        parts=[GROUP, CLIP, {"type": "group_match"}, TOKENS],
    ),
)
