"""Dynamic sampling: prompts whose completions are all right or all wrong give way to further prompts (DAPO, 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from trainer.rollout.base import Done, GenRequest, Pick, Prompt, Scene
from trainer.rollout.groups import by_group, requests


@dataclass
class Dynamic:
    """Samples further prompts until the step has its number of groups with a difference, over all processes.

    A group that stays keeps its number; a further one takes the number of one that goes. What is missing after
    `max_waves` is filled with groups without a difference, which do not learn. Every process decides alike, so the
    step does not depend on how many there are.
    """

    scene: Scene
    by: Literal["reward", "right"] = "right"
    max_waves: int = 10
    refill: Literal["whole", "missing"] = "whole"
    grades: ClassVar[bool] = True
    waves: int = 0
    numbers: list[int] = field(default_factory=list)  # the step's groups, ascending
    processes: int = 1
    varies: dict[int, bool] = field(default_factory=dict)  # by group, those of all processes
    sent: int = 0
    dead: list[int] = field(default_factory=list)

    @property
    def most(self) -> int:
        return self.scene.samples

    @property
    def good(self) -> list[int]:
        """Return the groups with a difference, those of earlier waves first."""
        return sorted(group for group, varies in self.varies.items() if varies)

    def first_wave(self) -> list[GenRequest]:
        parts = self.scene.together([prompt.group for prompt in self.scene.prompts])
        self.processes, self.numbers = len(parts), sorted(group for part in parts for group in part)
        return self._wave(self.scene.prompts)

    def next_wave(self, done: Sequence[Done]) -> list[GenRequest]:
        new = {group: self._varies(members) for group, members in by_group(done).items() if group not in self.varies}
        for part in self.scene.together(new):
            self.varies |= part
        first = set(self.numbers)  # they may have to fill the step
        dead = {group for group, varies in self.varies.items() if not varies and group not in first}
        self.dead = [one.request.id for one in done if one.request.group in dead]
        missing = len(self.numbers) - len(self.good)
        if missing <= 0 or self.waves == self.max_waves:
            return []
        further = self.scene.more(self.waves)
        return self._wave(further if self.refill == "whole" else further[: self._share(missing)])

    def spent(self) -> list[int]:
        return self.dead

    def finish(self, done: Sequence[Done]) -> list[Pick]:
        places = self._places()
        return [
            Pick(one, places[group], one.request.sample, learns=self.varies[group])
            for one in done
            if (group := one.request.group) in places
        ]

    def figures(self) -> dict[str, float]:
        seen, good = len(self.varies), len(self.good)
        wanted = len(self.numbers)
        return {
            "rollout/kept_share": good / seen if seen else 0.0,
            "rollout/surplus": float(max(0, good - wanted)),
        }

    def _wave(self, prompts: Sequence[Prompt]) -> list[GenRequest]:
        wave = requests(self.scene, prompts, range(self.scene.samples), self.sent)
        self.waves, self.sent = self.waves + 1, self.sent + len(wave)
        return wave

    def _share(self, missing: int) -> int:
        """Return how many further prompts this process samples: as many as the share kept so far makes enough."""
        wanted = missing * len(self.varies) / max(1, len(self.good))
        return min(len(self.scene.prompts), math.ceil(wanted / self.processes))

    def _varies(self, members: Sequence[Done]) -> bool:
        """Return whether completions of a prompt differ in what counts; what could not be graded says nothing."""
        values = [one.reward if self.by == "reward" else one.right for one in members]
        return len({value for value in values if value is not None}) > 1

    def _places(self) -> dict[int, int]:
        """Return the number in the step of each group that is in it."""
        staying = [group for group in self.good if group in set(self.numbers)]
        free = [number for number in self.numbers if not self.varies[number]]
        coming = [group for group in self.good if group not in set(self.numbers)]
        places = {group: group for group in staying} | dict(zip(coming, free, strict=False))
        return places | {number: number for number in free[len(coming) :]}
