"""The plain strategy: so many completions of each prompt, of some prompts as many again at another temperature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from trainer.rollout.base import Done, GenRequest, Pick, Prompt, Scene


@dataclass
class Groups:
    """One wave: the extra completions do not depend on the main ones."""

    scene: Scene
    grades: ClassVar[bool] = False

    @property
    def most(self) -> int:
        return self.scene.samples

    def first_wave(self) -> list[GenRequest]:
        scene = self.scene
        extra = [prompt for prompt in scene.prompts if prompt.group in scene.auxiliary_groups]
        wanted = [(prompt, False) for prompt in scene.prompts] + [(prompt, True) for prompt in extra]
        return [
            scene.request(place * scene.samples + sample, prompt, sample, prompt.group, sample, aux, auxiliary=aux)
            for place, (prompt, aux) in enumerate(wanted)
            for sample in range(scene.samples)
        ]

    def next_wave(self, done: Sequence[Done]) -> list[GenRequest]:
        return []

    def spent(self) -> tuple[int, ...]:
        return ()

    def finish(self, done: Sequence[Done]) -> list[Pick]:
        return [Pick(one, one.request.group, one.request.sample, auxiliary=one.request.auxiliary) for one in done]

    def figures(self) -> dict[str, float]:
        return {}


def requests(scene: Scene, prompts: Iterable[Prompt], samples: range, first: int) -> list[GenRequest]:
    """Return a request for each of these samples of each prompt, numbered from `first`, drawn as Groups draws them."""
    wanted = [(prompt, sample) for prompt in prompts for sample in samples]
    return [
        scene.request(first + place, prompt, sample, prompt.group, sample, 0)
        for place, (prompt, sample) in enumerate(wanted)
    ]


def by_group(done: Iterable[Done]) -> dict[int, list[Done]]:
    """Return the completions under their groups, both in the order they came."""
    found: dict[int, list[Done]] = {}
    for one in done:
        found.setdefault(one.request.group, []).append(one)
    return found
