"""Difficulty-adaptive sampling: the fewer completions of a prompt are right, the more are drawn (DARS, 2508.13755)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from trainer.rollout.base import Done, GenRequest, Pick, Scene
from trainer.rollout.groups import by_group, requests

Schedule = Literal["equal", "hard"]
Advantage = Literal["centred", "standardised"]
ROUNDING = 1e-9  # of a quotient that is a whole number


def weight(accuracy: float, advantage: Advantage) -> float:
    """Return the mean size of an advantage in a group of this accuracy, for 0/1 rewards (DARS, section 3)."""
    spread = accuracy * (1 - accuracy)
    return 2 * spread if advantage == "centred" else 2 * math.sqrt(spread)


def extra(accuracy: float, samples: int, most: int, *, schedule: Schedule, advantage: Advantage) -> int:
    """Return how many more completions a prompt gets after `samples` of which the share `accuracy` is right.

    Prompts of which half is right get none. `equal`: so many that the advantages of every harder prompt add up to as
    much as those of a prompt of accuracy 1/2; `hard`: 2 (1 - accuracy) times as much. Never more than `most` in all.
    A prompt that nothing solved counts as half a right completion.
    """
    if accuracy >= 0.5:
        return 0
    share = accuracy or 0.5 / samples
    each, full = weight(share, advantage), samples * weight(0.5, advantage)
    aim = full if schedule == "equal" else 2 * (1 - share) * full
    return max(0, min(most - samples, math.ceil((aim - samples * each) / each - ROUNDING)))


@dataclass
class Adaptive:
    """Two waves: as many completions of each prompt as ever, then more of those that few solve."""

    scene: Scene
    schedule: Schedule = "equal"
    advantage: Advantage = "centred"
    limit: int = 32
    grades: ClassVar[bool] = True
    more: dict[int, int] | None = None  # extra completions by group, once known
    shares: list[float] = field(default_factory=list)  # of right completions in the first wave, prompt by prompt
    unsolved: set[int] = field(default_factory=set)  # after the first wave
    counts: list[float] = field(default_factory=list)  # of all processes: see `finish`

    @property
    def most(self) -> int:
        return max(self.limit, self.scene.samples)

    def first_wave(self) -> list[GenRequest]:
        return requests(self.scene, self.scene.prompts, range(self.scene.samples), 0)

    def next_wave(self, done: Sequence[Done]) -> list[GenRequest]:
        if self.more is not None:
            return []
        samples = self.scene.samples
        right = {group: accuracy(members) for group, members in by_group(done).items()}
        self.shares = [share for share in right.values() if share is not None]
        self.unsolved = {group for group, share in right.items() if share == 0}
        self.more = {
            group: extra(share, samples, self.most, schedule=self.schedule, advantage=self.advantage)
            for group, share in right.items()
            if share is not None
        }
        wave: list[GenRequest] = []
        for prompt in self.scene.prompts:
            drawn = range(samples, samples + self.more.get(prompt.group, 0))
            wave += requests(self.scene, [prompt], drawn, len(done) + len(wave))
        return wave

    def spent(self) -> tuple[int, ...]:
        return ()

    def finish(self, done: Sequence[Done]) -> list[Pick]:
        groups, more = by_group(done), list((self.more or {}).values())
        solved = sum(any(one.right for one in groups[group]) for group in self.unsolved)
        mine = sum(map(bool, more)), sum(more), len(self.unsolved), solved, math.fsum(self.shares), len(self.shares)
        self.counts = [sum(column) for column in zip(*self.scene.together(mine), strict=True)]
        return [Pick(one, one.request.group, one.request.sample) for one in done]

    def figures(self) -> dict[str, float]:
        harder, more, unsolved, solved, right, graded = self.counts
        if not graded:
            return {}
        found = {"harder_share": harder / graded, "extra_samples": more / graded, "first_right": right / graded}
        found |= {"solved_later": solved / unsolved} if unsolved else {}
        return {f"rollout/{name}": value for name, value in found.items()}


def accuracy(members: Sequence[Done]) -> float | None:
    """Return the share of right completions among the graded ones; None where none was graded."""
    graded = [one.right for one in members if one.right is not None]
    return sum(graded) / len(graded) if graded else None
