"""Runs strategies without an engine: made-up grades, and several processes as threads that exchange what they know."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from trainer.rollout import Done, Generation, GenRequest, Pick, Prompt, SamplerSpec, Scene, Strategy, TapSpec

Grade = Callable[[GenRequest], bool | None]


def dice(seed: int) -> Grade:
    """Return grades by chance: every group has a difficulty of its own, one in twenty completions is not graded."""

    def grade(request: GenRequest) -> bool | None:
        share = random.Random(f"group {seed} {request.group}").choice([0.0, 0.0, 0.1, 0.5, 0.9, 1.0])
        throw = random.Random(f"{seed} {request.group} {request.sample}")
        return None if throw.random() < 0.05 else throw.random() < share

    return grade


class Together:
    """What several processes say at once."""

    def __init__(self, processes: int) -> None:
        self.said: list[Any] = [None] * processes
        self.barrier = Barrier(processes, timeout=20)

    def of(self, rank: int) -> Callable[[Any], list[Any]]:
        def together(own: Any) -> list[Any]:
            self.said[rank] = own
            self.barrier.wait()
            found = list(self.said)
            self.barrier.wait()
            return found

        return together


class Player:
    """One process: its share of the prompts and what came of every wave."""

    def __init__(self, prompts: int, samples: int, grade: Grade, *, rank: int = 0, together: Together | None = None):
        size = len(together.said) if together else 1
        self.grade, self.waves, self.done = grade, list[list[GenRequest]](), list[Done]()

        def share(wave: int) -> tuple[Prompt, ...]:
            return tuple(Prompt(wave * prompts + place, (place,)) for place in range(prompts)[rank::size])

        self.scene = Scene(
            step=1, prompts=share(0), samples=samples, max_new=8, sampler_of=lambda sample: SamplerSpec(1.5),
            tap=TapSpec(), seed_of=lambda *parts: hash(tuple(map(int, parts))), more=share,
            **({"together": together.of(rank)} if together else {}),
        )  # fmt: skip

    def play(self, strategy: Strategy) -> list[Pick]:
        """Run all waves and return what the step trains on."""
        wave = strategy.first_wave()
        while wave:
            self.waves.append(wave)
            self.done += [self._done(request) for request in wave]
            wave = strategy.next_wave(self.done)
            spent = set(strategy.spent())
            self.done = [one for one in self.done if one.request.id not in spent]
        return strategy.finish(self.done)

    def _done(self, request: GenRequest) -> Done:
        right = self.grade(request)
        reason = "length" if request.sample % 5 == 4 else "stop"
        generation = Generation(request.id, [1], [-1.0], [1.0], reason)
        return Done(request, generation, "", [0], (1,), [-1.0], [1.0], None if right is None else float(right), right)


def play(
    strategy: Callable[[Scene], Strategy], prompts: int, samples: int, grade: Grade, *, processes: int = 1
) -> tuple[list[Pick], list[Player], list[Strategy]]:
    """Return the picks of all processes in the step's order, their players and strategies."""
    together = Together(processes) if processes > 1 else None
    players = [Player(prompts, samples, grade, rank=rank, together=together) for rank in range(processes)]
    plans = [strategy(player.scene) for player in players]
    with ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(lambda pair: pair[0].play(pair[1]), zip(players, plans, strict=True)))
    picks = [pick for part in found for pick in part]
    return sorted(picks, key=lambda pick: (pick.group, pick.sample)), players, plans
