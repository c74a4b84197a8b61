"""Advantages of the segments of a tree: what the completions through a segment earn against those around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.reductions import equal_rewards, group_rank, groups_of, valid_of
from trainer.objectives.stages import Normaliser
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

FORMULA = (
    r"A_t = \frac{V(n_t) - V(\mathrm{parent}(n_t)) + g\,\bigl(V(n_t) - V(\mathrm{root})\bigr)}{|L(n_t)|^{p}},\quad "
    r"V(n) = \frac{1}{|L(n)|} \sum_{i \in L(n)} R_i"
)


class TreeAdvantage(Normaliser):
    """Advantage of a tree's segments.

    A segment is what lies between two forks, its value V the mean reward of the completions L that pass through it. Its
    tokens get its value less that of the segment before, plus g times its value less that of the whole group, divided
    by the number of its completions to the power p: segments of many completions count once for each of them. A
    completion that shares nothing gets 1 + g times its reward less the group's mean.
    """

    title: ClassVar[str] = "Advantage of a tree's segments"
    paper: ClassVar[str] = "2506.11902; 2601.05053"
    formula: ClassVar[str] = FORMULA
    domain: ClassVar[Domain] = "group"
    per_token: ClassVar[bool] = True
    needs: ClassVar[frozenset[Statistic]] = frozenset({"trajectory", "parent", "fork_at"})
    type: Literal["tree_advantage"] = "tree_advantage"
    root: float = setting(1.0, help="g: weight of the value against that of the whole group.", ge=0, le=100)
    spread: float = setting(
        0.5, help="p: power of the number of completions through a segment that divides its advantage.", ge=0, le=1
    )

    def normalise(self, batch: TokenBatch, step: Step) -> Tensor:
        trajectory, parent, fork_at = (statistic(batch, name, self) for name in ("trajectory", "parent", "fork_at"))
        shared, row = shared_tokens(trajectory, parent, fork_at, batch)
        if not batch.sequences:
            return torch.zeros_like(batch.logprob)
        ends, order = shared.sort(dim=1)  # [S, G] where the tree parts from this completion's path
        members = row.gather(1, order)
        table = self._table(ends, members, batch)
        segment = torch.zeros_like(batch.sequence)
        for column in ends.T:
            segment += column[batch.sequence] <= batch.position
        advantage = table[batch.sequence, segment.clamp(max=table.shape[1] - 1)]
        usable = valid_of(batch) & ~equal_rewards(batch)
        return torch.where(batch.per_token(usable), advantage, 0.0).to(batch.reward.dtype)

    def _table(self, ends: Tensor, members: Tensor, batch: TokenBatch) -> Tensor:
        """Return the advantage of each segment of each completion's path, [S, G]; `members` [S, G] are rows or -1."""
        present = (members >= 0) & valid_of(batch)[members.clamp(min=0)]
        reward = torch.where(present, batch.reward.double()[members.clamp(min=0)], 0.0)
        count, total = (_behind(values) for values in (present.double(), reward))
        value = total / count.clamp(min=1)
        # a segment begins where the path parted last from another: before it, all that shared more than that are there
        start = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1)
        before = value.gather(1, torch.searchsorted(ends, start))
        return (value - before + self.root * (value - value[:, :1])) / count.clamp(min=1) ** self.spread


def _behind(values: Tensor) -> Tensor:
    """Return the sum of each entry and all behind it, [S, G]."""
    return values.flip(1).cumsum(1).flip(1)


def shared_tokens(trajectory: Tensor, parent: Tensor, fork_at: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return how many first tokens each completion shares with each of its group, and those as rows, [S, G] each.

    `parent` [S] names a trajectory of the group drawn before, `fork_at` [S] how many tokens are taken from it; whoever
    has no such parent shares nothing. With itself a completion shares all. Places without a member hold 0 and -1.
    """
    whole = batch.replace(valid=None, reward=torch.zeros_like(batch.reward))  # ungraded completions may be parents
    place = group_rank(trajectory, whole)
    dense, groups = groups_of(batch)
    width = int(place.max()) + 1 if len(place) else 0
    rows = place.new_full((groups, width), -1)
    rows[dense, place] = torch.arange(len(place), device=place.device)
    names = torch.where(rows >= 0, trajectory[rows.clamp(min=0)], torch.nan)
    shared = fork_at.new_zeros(groups, width, width).double()
    every = torch.arange(groups, device=place.device)
    for k in range(width):
        own = rows[:, k].clamp(min=0)
        found = (names[:, :k] == parent[own][:, None]) & (rows[:, k] >= 0)[:, None]  # [groups, k]
        taken = torch.where(found.any(1), fork_at[own].double(), 0.0)
        behind = shared[every, found.double().argmax(1) if k else 0, :k]
        shared[:, k, :k] = shared[:, :k, k] = behind.minimum(taken[:, None])
        shared[:, k, k] = torch.inf
    return shared[dense, place], rows[dense]


PARTS = (TreeAdvantage,)
PRESETS = ()
