"""The plain strategy: so many completions of each prompt, of some prompts as many again at another temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from trainer.rollout.base import Done, GenRequest, Pick, Scene


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

    def finish(self, done: Sequence[Done]) -> list[Pick]:
        return [Pick(one, one.request.group, one.request.sample, auxiliary=one.request.auxiliary) for one in done]

    def figures(self) -> dict[str, float]:
        return {}
