"""GRPO's advantage: a completion's reward against the other completions of its prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import equal_rewards, groups_of, valid_of
from trainer.objectives.stages import Normaliser
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class GroupNorm(Normaliser):
    """Group advantage (GRPO).

    (reward - mean of the group) / (std + epsilon), with the unbiased std of the group or of the batch, or none
    (Dr. GRPO). A group of one has mean 0 and std 1. Completions without a usable reward get 0 and enter no mean.
    """

    title: ClassVar[str] = "Group advantage"
    paper: ClassVar[str] = "2402.03300; 2503.20783"
    formula: ClassVar[str] = (
        r"A_i = \frac{R_i - \operatorname{mean}_{j \in g(i)} R_j}{\operatorname{std}_{j \in g(i)} R_j + \epsilon}"
    )
    type: Literal["group_norm"] = "group_norm"
    std: Literal["group", "batch", "none"] = setting(
        "group", help="What the centred reward is divided by: the std of its group, of the whole batch, or nothing."
    )
    epsilon: float = setting(
        1e-6, help="Added to the std.", gt=0, le=1, advanced=True, show_if={"std": ["group", "batch"]}
    )

    def normalise(self, batch: TokenBatch, step: Step) -> Tensor:
        # float64: the rounding of a float32 mean, divided by epsilon, would give a group of equal rewards an advantage
        valid = valid_of(batch)
        reward = torch.where(valid, batch.reward.double(), torch.zeros((), dtype=torch.float64, device=valid.device))
        dense, count = groups_of(batch)
        size, members = self._sum(torch.ones_like(reward), dense, count), self._sum(valid.double(), dense, count)
        mean = self._sum(reward, dense, count) / members.clamp(min=1)
        mean = torch.where(size == 1, torch.zeros_like(mean), mean)
        centred = (reward - mean[dense]) * valid
        centred = torch.where(equal_rewards(batch), 0.0, centred)
        return (centred / self._divisor(reward, centred, valid, dense, size, members)).to(batch.reward.dtype)

    def _divisor(
        self, reward: Tensor, centred: Tensor, valid: Tensor, dense: Tensor, size: Tensor, members: Tensor
    ) -> Tensor:
        """Return std + epsilon for each completion, [S]."""
        if self.std == "none":
            return torch.ones_like(reward)
        if self.std == "batch":
            chosen = reward[valid]
            std = chosen.std() if chosen.numel() > 1 else reward.new_ones(())
            return (std + self.epsilon).expand_as(reward)
        variance = self._sum(centred.square(), dense, size.shape[0]) / (members - 1).clamp(min=1)
        std = torch.where(size == 1, torch.ones_like(variance), variance.sqrt())
        return std[dense] + self.epsilon

    @staticmethod
    def _sum(values: Tensor, dense: Tensor, count: int) -> Tensor:
        return values.new_zeros(count).index_add(0, dense, values)


PARTS = (GroupNorm,)
PRESETS = (
    Preset(
        name="grpo",
        title="GRPO",
        summary="Each completion is compared with the others of its prompt; the clipped ratio is averaged over all "
        "tokens. Nothing holds entropy: it falls as reward rises, and answers become alike.",
        when="The baseline to compare everything with.",
        formula=r"A_i = \frac{R_i - \operatorname{mean}(R)}{\operatorname{std}(R) + \epsilon},\quad "
        r"L = \frac{1}{\sum_i |o_i|} \sum_{i,t} "
        r"\max\bigl(-A_i r_t,\ -A_i \operatorname{clip}(r_t, 1-\epsilon_-, 1+\epsilon_+)\bigr)",
        reference=paper(
            "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", "2402.03300", 2024
        ),
        confidence="code",
        parts=[GROUP, CLIP, TOKENS],
    ),
    Preset(
        name="dr-grpo",
        title="Dr. GRPO",
        summary="GRPO without its two biases: no division by the group's std, which favours nearly solved prompts, "
        "and no division by length, which favours long wrong answers.",
        when="Answers grow longer without getting better.",
        formula=r"A_i = R_i - \operatorname{mean}(R),\quad L = \frac{1}{S\,L_{\max}} \sum_{i,t} "
        r"\max\bigl(-A_i r_t,\ -A_i \operatorname{clip}(r_t, 1-\epsilon_-, 1+\epsilon_+)\bigr)",
        reference=paper("Understanding R1-Zero-Like Training: A Critical Perspective", "2503.20783", 2025),
        confidence="code",
        parts=[{"type": "group_norm", "std": "none"}, CLIP, {"type": "const_norm"}],
    ),
)
