"""SEED-GRPO: prompts on which the policy disagrees with itself get smaller updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.advantages.responses import answered, start_logprob
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_mean, group_extreme, group_size, group_sum, groups_of, valid_of
from trainer.objectives.stages import SequenceMultiplier
from trainer.objectives.stock import CLIP, GROUP_NO_STD, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


SPAN = 60.0  # nats between the likeliest response and the least likely that still counts


class SemanticEntropy(SequenceMultiplier):
    """Semantic entropy factor (SEED-GRPO).

    Equal answers of a group form clusters; their semantic entropy over log of the group's size scales every advantage
    of the group down. Responses without an answer are one more cluster. `printed` averages -log p over the clusters,
    which can exceed the maximum and is cut there; `shannon` weighs by p.
    """

    title: ClassVar[str] = "Semantic entropy factor (SEED-GRPO)"
    paper: ClassVar[str] = "2505.12346"
    formula: ClassVar[str] = (
        r"A_i = (r_i - \bar r)\,f\!\left(\alpha\,\frac{SE}{\log G}\right),\qquad SE = -\tfrac1K \sum_k \log p_k"
    )
    domain: ClassVar[Domain] = "group"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"answer"})
    type: Literal["semantic_entropy"] = "semantic_entropy"
    alpha: float = setting(
        0.0417, help="Strength; 1 takes the whole update from a group without agreement.", ge=0, le=10
    )
    form: Literal["linear", "exp", "focal"] = setting("linear", help="1 - x, exp(-x) or (1 - x)^gamma.")
    gamma: float = setting(2.0, help="Exponent of the focal form.", gt=0, le=10, show_if={"form": "focal"})
    average: Literal["printed", "shannon"] = setting(
        "printed", help="Mean of -log p over clusters, as printed, or weighed by p.", advanced=True
    )
    probability: Literal["frequency", "likelihood"] = setting(
        "frequency",
        help="What a cluster's probability is: its share of the responses, or of their length-normalised likelihood.",
    )

    def reads(self) -> frozenset[Statistic]:
        return self.needs | {"old_logprob"} if self.probability == "likelihood" else self.needs

    def multiply(self, batch: TokenBatch, step: Step) -> Tensor:
        counted = answered(batch)
        size = group_size(counted)
        share = (self._entropy(counted) / size.clamp(min=2).log()).clamp(0, 1)
        counted_share = share[valid_of(counted)]
        step.metrics["objective/semantic_entropy"] = float(counted_share.mean()) if counted_share.numel() else 0.0
        x = self.alpha * share
        if self.form == "exp":
            return (-x).exp()
        return (1 - x).clamp(min=0) if self.form == "linear" else (1 - x).clamp(min=0).pow(self.gamma)

    def _entropy(self, batch: TokenBatch) -> Tensor:
        """Return the semantic entropy of each completion's group, [S], nats."""
        answer, valid = statistic(batch, "answer", self).long(), valid_of(batch)
        dense, _ = groups_of(batch)
        kinds, cluster = torch.unique(torch.stack([dense, answer]), dim=1, return_inverse=True)
        weight = torch.where(valid, self._likelihood(batch), 0.0)
        mass = weight.new_zeros(kinds.shape[1]).index_add(0, cluster, weight)[cluster]
        members = torch.bincount(cluster[valid], minlength=kinds.shape[1])[cluster]
        tiny = torch.finfo(weight.dtype).tiny
        surprise = -(mass / group_sum(weight, batch).clamp(min=tiny)).clamp(tiny, 1).log()
        each = torch.where(valid, 1 / members.clamp(min=1), 0.0).to(weight.dtype)  # a cluster's members sum to 1
        if self.average == "shannon":
            return group_sum(surprise * (-surprise).exp() * each, batch)
        return group_sum(surprise * each, batch) / group_sum(each, batch).clamp(min=1)

    def _likelihood(self, batch: TokenBatch) -> Tensor:
        """Return the weight of each response in its group, [S], up to a factor of the group."""
        if self.probability == "frequency":
            return torch.ones_like(batch.reward)
        mean = completion_mean(start_logprob(batch), batch)
        best = group_extreme(mean, batch, largest=True)
        return torch.where(torch.isfinite(best), mean - best, 0.0).clamp(min=-SPAN).exp()


PARTS = (SemanticEntropy,)
PRESETS = (
    Preset(
        name="seed-grpo",
        title="SEED-GRPO",
        summary="The more different answers a prompt's responses give, the smaller its update. Entropy falls more "
        "slowly on prompts the policy does not master yet.",
        when="Answers can be compared; noisy rewards on hard prompts.",
        formula=SemanticEntropy.formula,
        reference=paper(
            "SEED-GRPO: Semantic Entropy Enhanced GRPO for Uncertainty-Aware Policy Optimization", "2505.12346", 2025
        ),
        confidence="secondary",
        assumed="The focal form and its exponent 2; responses without an answer count as one cluster.",
        parts=[GROUP_NO_STD, {"type": "semantic_entropy"}, CLIP, TOKENS],
    ),
)
