"""EVOL-RL: the majority decides the sign of the reward, novelty its size."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import group_rank, groups_of, valid_of
from trainer.objectives.rewards.replaced import others
from trainer.objectives.rewards.vote import majority
from trainer.objectives.stages import RewardShaper
from trainer.objectives.stock import BONUS, CLIP_HIGHER, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

FORMULA = r"""r_i = \begin{cases} 0.5 + 0.5\, n_i & \text{majority} \\ -1 + 0.5\, n_i & \text{else} \end{cases},
 \quad n_i = \operatorname{minmax}\big(1 - \tfrac{1}{2} \operatorname{mean}_{\text{class}} s_{ij}
 - \tfrac{1}{2} \max_j s_{ij}\big)"""
ALONE, TIE = 1.0, 0.5  # novelty of the only completion of its class, and of equally novel ones


class EvolReward(RewardShaper):
    """Majority for selection, novelty for variation (EVOL-RL).

    Completions that give the majority's answer get 0.5 to 1, the others -1 to -0.5: more the less they resemble the
    completions of their class (on average) and of the group (at most), by the cosine of their embeddings. No answer
    gives -1.
    """

    title: ClassVar[str] = "Majority and novelty (EVOL-RL)"
    paper: ClassVar[str] = "2509.15194"
    formula: ClassVar[str] = FORMULA
    domain: ClassVar[Domain] = "group"
    incompatible: ClassVar[frozenset[str]] = others("evol_rl")
    type: Literal["evol_rl"] = "evol_rl"
    label: Literal["vote", "correct"] = setting(
        "vote", help="What divides the classes: the majority's answer, or the task's own check."
    )
    mean_weight: float = setting(0.5, help="Weight of the mean likeness to the class.", ge=0, le=1, advanced=True)
    max_weight: float = setting(0.5, help="Weight of the largest likeness in the group.", ge=0, le=1, advanced=True)

    def reads(self) -> frozenset[Statistic]:
        return frozenset({"embedding", "answer" if self.label == "vote" else "correct"})

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        voted = self.label == "vote"
        answer = statistic(batch, "answer" if voted else "correct", self)
        right = majority(answer, batch) if voted else answer > 0.5
        novelty = self._novelty(right, batch)
        step.metrics["objective/novelty"] = float(novelty.mean()) if novelty.numel() else 0.0
        reward = torch.where(right, 0.5 + 0.5 * novelty, -1 + 0.5 * novelty)
        return torch.where(answer < 0, -1.0, reward) if voted else reward

    def _novelty(self, right: Tensor, batch: TokenBatch) -> Tensor:
        """Return how novel each completion is within its class of its group, [S], in [0, 1]."""
        dense, groups = groups_of(batch)
        rank, valid = group_rank(torch.zeros_like(batch.reward), batch), valid_of(batch)
        embedding = statistic(batch, "embedding", self)
        width = int(rank.max()) + 1 if batch.sequences else 0
        if width < 1:
            return torch.zeros_like(batch.reward)
        row, place = dense[valid], rank[valid]
        table = embedding.new_zeros(groups, width, embedding.shape[1])
        table[row, place] = torch.nn.functional.normalize(embedding[valid], dim=-1)
        present, side = (torch.zeros(groups, width, dtype=torch.bool, device=row.device) for _ in range(2))
        present[row, place], side[row, place] = True, right[valid]
        novelty = torch.zeros_like(batch.reward)
        novelty[valid] = self._scaled(table, present, side)[row, place].to(novelty.dtype)
        return novelty

    def _scaled(self, table: Tensor, present: Tensor, side: Tensor) -> Tensor:
        """Return the novelty of each place of a [groups, width, E] table of unit vectors, [groups, width]."""
        likeness = (table @ table.transpose(1, 2)).clamp(0, 1)
        other = present[:, :, None] & present[:, None, :]
        other = other & ~torch.eye(other.shape[1], dtype=torch.bool, device=other.device)
        same = present[:, :, None] & present[:, None, :] & (side[:, :, None] == side[:, None, :])
        fellow = other & same
        alone = ~fellow.any(-1)
        kin = torch.where(alone[:, :, None], other, fellow)
        mean = (likeness * kin).sum(-1) / kin.sum(-1).clamp(min=1)
        largest = torch.where(other, likeness, 0.0).amax(-1)
        novel = 1 - self.mean_weight * mean - self.max_weight * largest
        shared = novel[:, None, :].expand_as(likeness)
        low = torch.where(same, shared, torch.inf).amin(-1)
        spread = torch.where(same, shared, -torch.inf).amax(-1) - low
        scaled = torch.where(spread > 0, (novel - low) / torch.where(spread > 0, spread, 1.0), TIE)
        return torch.where(alone, ALONE, scaled)


PARTS = (EvolReward,)
PRESETS = (
    Preset(
        name="evol-rl",
        title="EVOL-RL",
        summary="Unsupervised: the majority's answer earns reward and the others lose it, and within each side the "
        "completions least like the rest earn most. Novelty and a small bonus keep entropy from the collapse that "
        "voting alone brings.",
        when="Prompts without reference answers; the authors draw 64 votes and learn from 32.",
        formula=FORMULA,
        reference=paper(
            "Evolving Language Models without Labels: Majority Drives Selection, Novelty Promotes Variation",
            "2509.15194",
            2025,
        ),
        confidence="code",
        variants="The authors normalise over the completions learnt from; here the group's mean and std are those of "
        "all votes.",
        parts=[
            {"type": "evol_rl"},
            GROUP,
            {"type": "sub_sample"},
            CLIP_HIGHER,
            {"type": "kl_penalty", "coefficient": 1e-3},
            BONUS | {"coefficient": 0.003},
            TOKENS,
        ],
    ),
)
