"""G2RL: responses that would move the policy in a direction of their own get a larger reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.advantages.responses import group_scaled
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.rewards.likeness import cosines, rivals
from trainer.objectives.stages import RewardShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class G2rl(RewardShaper):
    """Gradient novelty (G2RL).

    A response's feature is the mean gradient of its log-probs by the last hidden state. Its novelty is what the other
    responses of the group, the rewarded ones foremost, do not span: 1 minus the mean squared cosine, scaled to [0, 1]
    in the group. As printed the reward becomes r (1 + weight r novelty), which softens the penalty of a novel wrong
    answer; as narrated r (1 + weight novelty), which hardens it. Rewards should be +1 and -1.
    """

    title: ClassVar[str] = "Gradient novelty (G2RL)"
    paper: ClassVar[str] = "2512.15687"
    formula: ClassVar[str] = (
        r"\tilde r_i = r_i\,(1 + \lambda\,r_i\,\bar\nu_i),\quad "
        r"\nu_i = \max\Bigl(1 - \sum_{j\ne i} w_{ij}\cos^2(\Phi_i,\Phi_j),\,0\Bigr),\quad "
        r"w_{ij} = \operatorname{softmax}_j r_j"
    )
    domain: ClassVar[Domain] = "group"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"gradient_feature"})
    type: Literal["g2rl"] = "g2rl"
    variant: Literal["printed", "narrated"] = setting(
        "printed", help="Printed: novelty softens wrong answers. Narrated: it scales both signs."
    )
    weight: float = setting(0.5, help="How much the most novel response gains.", ge=0, le=10)
    limit: float = setting(3.0, help="Largest size of the new reward.", gt=0, le=1e6)

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        feature, reward = statistic(batch, "gradient_feature", self), batch.reward
        pairs = rivals(batch)
        scores = torch.where(pairs, reward[None, :], -torch.inf)
        top = scores.amax(1, keepdim=True).clamp(min=torch.finfo(reward.dtype).min) if scores.numel() else scores
        power = (scores - top).exp()
        share = power / power.sum(1, keepdim=True).clamp(min=1)  # 1 at the largest, so less than 1 means no rivals
        spanned = (share * cosines(feature).square()).sum(1)
        novelty = group_scaled((1 - spanned).clamp(min=0), batch, 1e-8)
        sign = reward if self.variant == "printed" else torch.ones_like(reward)
        return (reward * (1 + self.weight * sign * novelty)).clamp(-self.limit, self.limit)


PARTS = (G2rl,)
PRESETS = (
    Preset(
        name="g2rl",
        title="G2RL",
        summary="Right answers whose gradient points where no other answer of the group points are rewarded more. The "
        "policy learns different ways to the goal instead of one; entropy is kept between ways, not inside them.",
        when="Rewards of +1 and -1 and large groups; needs hidden gradients of each response.",
        formula=G2rl.formula,
        reference=paper(
            "Can LLMs Guide Their Own Exploration? Gradient-Guided Reinforcement Learning for LLM Reasoning",
            "2512.15687",
            2025,
        ),
        confidence="paper",
        assumed="The weight of the novelty, 0.5, is not given in the text.",
        variants="As printed, novelty softens the penalty of wrong answers; the text says that it scales both signs "
        "(variant = narrated).",
        parts=[{"type": "g2rl"}, GROUP, CLIP, TOKENS],
    ),
)
