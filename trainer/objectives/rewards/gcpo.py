"""GCPO: a group earns the volume that its right answers span, and each answer what it adds to it."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import groups_of, valid_of
from trainer.objectives.rewards.draws import draws
from trainer.objectives.rewards.likeness import unit
from trainer.objectives.stages import RewardShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

LARGEST = 1e3  # of a reward: the determinant of larger ones would leave float64's precision
PURPOSE = 1 << 20  # keeps these draws apart from those of other parts


class Gcpo(RewardShaper):
    """Cooperative reward (GCPO).

    The team's reward is the log volume that its right answers span: logdet(I + scale Z Z^T) of their embeddings at
    length 1, times their reward. A response's reward becomes its Shapley value, the mean of what it adds to those
    before it over orders of the group: all orders where there are few enough, else random ones of the run's seed.
    Wrong answers add nothing, and neither do copies of what is there.
    """

    title: ClassVar[str] = "Cooperative reward (GCPO)"
    paper: ClassVar[str] = "2605.11461"
    formula: ClassVar[str] = (
        r"\tilde r_i = \operatorname{mean}_{\text{orders}}\bigl[v(S_{<i}\cup i) - v(S_{<i})\bigr],\quad "
        r"v(S) = \log\det(I + \lambda\,Z_S Z_S^\top),\quad z_i = r_i\,e_i/\lVert e_i\rVert\ [\text{right}]"
    )
    domain: ClassVar[Domain] = "group"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"embedding", "correct", "trajectory"})
    type: Literal["gcpo"] = "gcpo"
    scale: float = setting(1.0, help="Weight of the embeddings against the identity.", gt=0, le=1e6)
    orders: int = setting(
        120,
        help="Orders of a group to average over; groups with no more orders than that are computed exactly.",
        ge=1,
        le=5040,
        advanced=True,
    )

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        if not batch.sequences:
            return batch.reward
        dense, groups = groups_of(batch)
        seat, seats = self._seats(dense, groups)
        vector = torch.zeros(groups, seats, self._width(batch), dtype=torch.float64, device=dense.device)
        vector[dense, seat] = self._vectors(batch)
        kernel = torch.eye(seats, dtype=vector.dtype, device=dense.device) + self.scale * vector @ vector.mT
        order = self._orders(batch, step, dense, seat, groups, seats)  # [K, P, n]
        added = torch.zeros(groups, seats, dtype=vector.dtype, device=dense.device)
        for one in order:  # the squares of the Cholesky diagonal are the ratios of successive determinants
            rows = kernel.gather(1, one[:, :, None].expand_as(kernel))
            placed = rows.gather(2, one[:, None, :].expand_as(kernel))
            gain = 2 * torch.linalg.cholesky(placed).diagonal(dim1=1, dim2=2).log()
            added.scatter_add_(1, one, gain)
        return (added / order.shape[0])[dense, seat].to(batch.reward.dtype)

    def _width(self, batch: TokenBatch) -> int:
        return statistic(batch, "embedding", self).shape[1]

    def _vectors(self, batch: TokenBatch) -> Tensor:
        """Return the embeddings of right answers at the length of their reward, zero for others, [S, E]."""
        right = valid_of(batch) & (statistic(batch, "correct", self) > 0)
        length = torch.where(right, batch.reward.double().clamp(-LARGEST, LARGEST), 0.0)
        return unit(statistic(batch, "embedding", self).double()) * length[:, None]

    @staticmethod
    def _seats(dense: Tensor, groups: int) -> tuple[Tensor, int]:
        """Return the place of each completion in its group, [S], and the places of the largest group."""
        number = torch.bincount(dense, minlength=groups)
        order = torch.argsort(dense, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(order.shape[0], device=order.device)
        return place - (number.cumsum(0) - number)[dense], int(number.max())

    def _orders(self, batch: TokenBatch, step: Step, dense: Tensor, seat: Tensor, groups: int, seats: int) -> Tensor:
        """Return orders of the places of each group, [K, P, n]."""
        if math.factorial(min(seats, 8)) <= self.orders:
            every = torch.tensor(list(itertools.permutations(range(seats))), device=dense.device)
            return every[:, None, :].expand(-1, groups, -1)
        own = batch.extra.get("trajectory", torch.arange(batch.sequences, device=dense.device))
        found = []
        for number in range(self.orders):
            key = torch.ones(groups, seats, dtype=torch.float64, device=dense.device)
            key[dense, seat] = draws(step, own, PURPOSE + number)
            found.append(key.argsort(dim=1, stable=True))
        return torch.stack(found)


PARTS = (Gcpo,)
PRESETS = (
    Preset(
        name="gcpo",
        title="GCPO",
        summary="The group is rewarded as a team for the variety of its right answers, and each answer by what it "
        "adds: a right answer unlike the others earns most, a repetition little. Ways to the goal do not crowd each "
        "other out, so entropy between answers stays.",
        when="Groups with several right answers; needs a sentence encoder.",
        formula=Gcpo.formula,
        reference=paper(
            "Breaking Winner-Takes-All: Cooperative Policy Optimization Improves Diverse LLM Reasoning",
            "2605.11461",
            2026,
        ),
        confidence="reconstructed",
        assumed="Only the abstract was at hand: the log determinant with the identity, its scale 1, Shapley values "
        "over orders and the group's standardisation of them are ours.",
        parts=[{"type": "gcpo"}, GROUP, CLIP, TOKENS],
    ),
)
