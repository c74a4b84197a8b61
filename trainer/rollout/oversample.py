"""Oversampling: more completions of each prompt than the step takes, of which some are kept (after T1, 2501.11651)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trainer.rollout.base import Done, GenRequest, Pick, SamplerSpec, Scene
from trainer.rollout.groups import by_group, requests
from trainer.rollout.modifiers import ForkTemperature

Keep = Literal["spread", "first", "all"]


@dataclass
class Oversample:
    """One wave of `candidates` completions of each prompt, at a multiple of the sampling temperature.

    `spread` keeps those whose rewards differ most (the largest variance), `first` the first ones, `all` every one.
    """

    scene: Scene
    candidates: int
    hotter: float = 1.0
    keep: Keep = "spread"
    finished_first: bool = True

    @property
    def grades(self) -> bool:
        return self.keep == "spread"

    @property
    def most(self) -> int:
        return self.candidates if self.keep == "all" else self.scene.samples

    def first_wave(self) -> list[GenRequest]:
        wave = requests(self.scene, self.scene.prompts, range(self.candidates), 0)
        return [replace(one, sampler=self._hot(one.sampler)) for one in wave]

    def next_wave(self, done: Sequence[Done]) -> list[GenRequest]:
        return []

    def spent(self) -> tuple[int, ...]:
        return ()

    def finish(self, done: Sequence[Done]) -> list[Pick]:
        return [
            Pick(one, group, sample)
            for group, members in by_group(done).items()
            for sample, one in enumerate(self._kept(members))
        ]

    def figures(self) -> dict[str, float]:
        return {}

    def _hot(self, given: SamplerSpec) -> SamplerSpec:
        """Return a sampler that draws hotter; log-probs stay those at the temperature of training."""
        if self.hotter == 1:
            return given
        return replace(given, modifiers=(ForkTemperature(0.0, self.hotter, self.hotter), *given.modifiers))

    def _kept(self, members: Sequence[Done]) -> list[Done]:
        """Return the chosen completions of a group in the order of their numbers."""
        last = [one for one in members if self.finished_first and one.generation.finish_reason != "stop"]
        pool = [one for one in members if not self.finished_first or one.generation.finish_reason == "stop"]
        pool += last[: max(0, self.most - len(pool))]
        chosen = spread(pool, self.most) if self.keep == "spread" else pool[: self.most]
        return sorted(chosen, key=lambda one: one.request.sample)


def spread(pool: Sequence[Done], number: int) -> list[Done]:
    """Return so many completions with the largest variance of their rewards (2504.13818); ungraded ones come last.

    The best choice always takes the lowest and the highest rewards; of equally good ones, as many of each.
    """
    graded = sorted((one for one in pool if one.reward is not None), key=lambda one: (one.reward, one.request.sample))
    if len(graded) <= number:
        return [*graded, *(one for one in pool if one.reward is None)][:number]
    cuts = sorted(range(number + 1), key=lambda low: abs(2 * low - number))
    chosen = [graded[:low] + graded[len(graded) - number + low :] for low in cuts]
    return max(chosen, key=lambda part: round(_variance([one.reward or 0.0 for one in part]), 9))


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)
