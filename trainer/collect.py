"""Collecting a rollout batch: a strategy's waves through the engine and the graders, into completions that train."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from trainer.completion import BOUNDS, Completion, is_right
from trainer.config import RunConfig
from trainer.distributed import World
from trainer.live_view import LiveView
from trainer.mismatch import drift
from trainer.objectives import Objective, Step
from trainer.objectives.base import AuxiliaryPlan
from trainer.policy import Trajectory
from trainer.prompts import Asked, Prompts
from trainer.rewards.pool import RewardPool
from trainer.rewards.scoring import Scored
from trainer.rollout import Done, Engine, Generation, GenRequest, Pick, Prompt, Scene, TapSpec
from trainer.rollout.groups import Groups
from trainer.rollout.sampling import seed_of
from trainer.stream import Silent
from trainer.text import Detokenizer

TRAIN, EVALUATE, GREEDY = 0, 1, 2  # purposes, so that their random numbers differ


class Collector:
    """Samples and grades this process's share of each step's prompts (every `world.size`-th)."""

    def __init__(
        self,
        config: RunConfig,
        prompts: Prompts,
        engine: Engine,
        pool: RewardPool,
        detokenizer: Detokenizer,
        stream: Silent,
        world: World,
        objective: Objective,
    ) -> None:
        self.config, self.prompts, self.engine, self.objective = config, prompts, engine, objective
        self.pool, self.detokenizer, self.stream, self.world = pool, detokenizer, stream, world
        self.special = frozenset(prompts.special_ids)
        self.complained = False

    def collect(
        self, step: Step, attempt: int, times: dict[str, float], figures: dict[str, float], *, moments: bool = False
    ) -> list[Completion]:
        """Return the graded completions of this process's groups, ordered by index.

        Adds to `times` (seconds) and to `figures`. `moments` asks the engine for the moments of each token's
        distribution.
        """
        wave = Waves(self, step, attempt, TapSpec(moments=moments))
        completions = wave.run()
        times |= {"sample": wave.sampling, "reward": wave.grading}
        figures |= wave.figures(completions)
        return completions

    def complain(self, step: int, filled: int) -> None:
        """Say once that groups of a step teach nothing; afterwards the metric alone says it."""
        if filled and not self.complained:
            groups = self.config.sampling.prompts_per_step
            message = (
                f"{filled} of {groups} prompts were filled up: no more groups with a difference came; they do not "
                "learn, and rollout/filled counts them from now on; take easier prompts or more samples of each"
            )
            self.stream.emit("warning", step, code="rollout", message=message)
            self.complained = True


class Waves:
    """One step's rollouts: runs a strategy's waves until it is content."""

    def __init__(self, collector: Collector, step: Step, attempt: int, tap: TapSpec) -> None:
        self.collector, self.step, self.config = collector, step, collector.config
        self.plan = collector.objective.auxiliary(step)
        self.asked: dict[int, Asked] = {}  # by group as it was drawn
        self.waves = self.made = self.generated = 0  # waves, completions and their tokens without prefixes
        self.drift = [0.0, 0]  # of tokens not drawn plainly: sum in nats, and how many
        self.rewards: dict[int, float | None] = {}  # of all that was graded, by request id
        self.strategy = collector.objective.strategy(self._scene(tap), step)
        self.stream = collector.stream
        limit = self.config.recording.live_samples
        self.live = LiveView(self.stream, attempt, step.step, collector.detokenizer, limit=limit)
        self.done: list[Done] = []
        self.known: dict[int, tuple[Done, Scored | None]] = {}  # by request id
        self.sampling = self.grading = 0.0

    def run(self) -> list[Completion]:
        """Return the completions that train, graded, ordered by index."""
        self.stream.begin_step()
        wave = self.strategy.first_wave()
        while wave:
            self._generate(wave)
            if self.strategy.grades:
                self._grade([request.id for request in wave])
            self.done = [self.known[one.request.id][0] for one in self.done]
            wave = self.strategy.next_wave(self.done)
            self._forget(self.strategy.spent())
        picks = self.strategy.finish(self.done)
        self._shorten(picks)
        self._grade([pick.done.request.id for pick in picks])
        places = {pick.done.request.id: self._index(pick) for pick in picks}
        completions = [self._completion(pick, places) for pick in picks]
        return sorted(completions, key=lambda completion: completion.index)

    def figures(self, completions: Sequence[Completion]) -> dict[str, float]:
        """Return the strategy's own figures and what was generated for how much that trains, over all processes."""
        learned = sum(c.tokens.learned for c in completions if c.learns)
        idle = {completion.group for completion in completions if not completion.learns}
        rewards = [reward for reward in self.rewards.values() if reward is not None]
        mine = (self.made, self.generated, learned, len(idle), len(rewards), math.fsum(rewards))
        *sums, waves = zip(*self.collector.world.gather((*mine, *self.drift, self.waves)), strict=True)
        made, generated, learned, filled, graded, reward, moved, bent = map(sum, sums)
        found = {"tokens/generated": float(generated)} | ({"decoding/drift": moved / bent} if bent else {})
        if isinstance(self.strategy, Groups):
            return found
        found |= {"rollout/waves": float(max(waves)), "rollout/generated": float(made), "rollout/filled": float(filled)}
        found |= {"rollout/overhead": generated / learned} if learned else {}
        found |= {"rollout/reward": reward / graded} if self.strategy.grades and graded else {}
        self.collector.complain(self.step.step, filled)
        return found | self.strategy.figures()

    def _scene(self, tap: TapSpec) -> Scene:
        sampling, recording = self.config.sampling, self.config.recording
        step = replace(self.step, special_ids=tuple(sorted(self.collector.special)))
        samples = sampling.samples_per_prompt
        given = sampling.drawn_at(step.knobs["temperature"])
        plan: AuxiliaryPlan | None = self.plan
        return Scene(
            step=step.step,
            prompts=self._prompts(0),
            samples=samples,
            max_new=sampling.max_completion_tokens,
            sampler_of=lambda sample: self.collector.objective.sampler(given, sample % samples, samples, step),
            tap=tap,
            seed_of=lambda *parts: seed_of(self.config.seed, TRAIN, step.step, *map(int, parts)),
            more=self._prompts,
            special_ids=self.collector.special,
            watched=lambda group, sample: recording.live_samples > 0,
            auxiliary_groups=frozenset(range(math.ceil(plan.prompt_share * sampling.prompts_per_step)))
            if plan
            else frozenset(),
            auxiliary_temperature=plan.temperature if plan else 1.0,
            together=self.collector.world.gather,
        )

    def _prompts(self, wave: int) -> tuple[Prompt, ...]:
        """Return this process's prompts of a wave: those of the step, then further ones."""
        prompts, world = self.collector.prompts, self.collector.world
        rows = prompts.of_step(self.step.step, wave)
        first = wave * len(rows)
        asked = {
            first + place: prompts.asked(self.step.step, first + place, rows[place])
            for place in range(len(rows))[world.rank :: world.size]
        }
        self.asked |= asked
        return tuple(Prompt(group, one.ids, one.template) for group, one in asked.items())

    def _generate(self, wave: Sequence[GenRequest]) -> None:
        began = time.monotonic()
        texts = {request.group: self.asked[request.group].row.prompt for request in wave}
        self.live.wave(wave, texts)
        generations = self.collector.engine.run(wave, self.live, self.live.progress)
        self.live.end(generations)
        for request, generation in zip(wave, generations, strict=True):
            done = self._done(request, generation)
            self.done.append(done)
            self.known[request.id] = done, None
        self.waves, self.made = self.waves + 1, self.made + len(wave)
        self.drift = [before + more for before, more in zip(self.drift, drift(generations), strict=True)]
        self.generated += sum(len(generation.ids) for generation in generations)
        self.sampling += time.monotonic() - began

    def _done(self, request: GenRequest, generation: Generation) -> Done:
        at, given = len(request.prefix_ids), request.given_logprob
        parent = self.known[request.parent][0] if request.parent is not None else None
        ids = (*request.prefix_ids, *generation.ids)
        text, offsets = self.collector.detokenizer.decode(list(ids))
        return Done(
            request, generation, text, offsets, ids,
            logprob=[*parent.logprob[: at - len(given)], *given, *generation.logprob] if parent else generation.logprob,
            entropy=[*parent.entropy[:at], *generation.entropy] if parent else generation.entropy,
        )  # fmt: skip

    def _grade(self, ids: Sequence[int]) -> None:
        """Grade those of the requests that are not graded yet."""
        began = time.monotonic()
        new = [self.known[index][0] for index in ids if self.known[index][1] is None]
        self.stream.progress(self.step.step, "reward", 0, len(new))
        rows = [self.asked[done.request.group].row for done in new]
        scored = self.collector.pool.score(rows, [done.text for done in new]) if new else []
        for done, result in zip(new, scored, strict=True):
            graded = replace(done, reward=result.reward, right=is_right(result))
            self.known[done.request.id] = graded, result
            self.rewards[done.request.id] = result.reward
        self.grading += time.monotonic() - began

    def _forget(self, spent: Collection[int]) -> None:
        """Let go of the tokens of completions that nobody asks for again."""
        for index in spent:
            del self.known[index]
        if spent:
            self.done = [done for done in self.done if done.request.id in self.known]

    def _shorten(self, picks: Sequence[Pick]) -> None:
        """Take over the completions that the strategy has cut off; they are graded as they are now."""
        for pick in picks:
            index = pick.done.request.id
            if len(pick.done.ids) < len(self.known[index][0].ids):
                self.known[index] = pick.done, None

    def _index(self, pick: Pick) -> int:
        groups = self.config.sampling.prompts_per_step
        return (groups * pick.auxiliary + pick.group) * self.strategy.most + pick.sample

    def _completion(self, pick: Pick, places: dict[int, int]) -> Completion:
        request = pick.done.request
        (done, scored), asked = self.known[request.id], self.asked[request.group]
        assert scored is not None
        at = len(request.prefix_ids)
        counts: tuple[bool, ...] = ()
        if at and pick.prefix == "masked":
            counts = (False,) * at + (True,) * (len(done.ids) - at)
        return Completion(
            index=self._index(pick), group=pick.group, sample=pick.sample, auxiliary=pick.auxiliary,
            row=asked.row, tokens=Trajectory(request.prompt_ids, done.ids, counts),
            engine_logprob=done.logprob, engine_entropy=done.entropy, engine_moments=self._moments(request.id),
            finish_reason=done.generation.finish_reason, text=done.text, offsets=done.offsets, scored=scored,
            parent=places.get(request.parent) if request.parent is not None else None, fork_at=request.fork_at,
            version=done.generation.version, template=asked.template, learns=pick.learns,
        )  # fmt: skip

    def _moments(self, index: int) -> dict[str, list[float]]:
        """Return a request's moments and bounds of entropy by name, those of its prefix in front."""
        done = self.known[index][0]
        said = done.generation
        bounds = dict(zip(BOUNDS, (said.low, said.high), strict=True)) if said.estimator == "bounds" else {}
        at, parent = len(done.request.prefix_ids), done.request.parent
        before: dict[str, Any] = self._moments(parent) if at and parent is not None else {}
        return {name: [*before.get(name, [])[:at], *own] for name, own in (said.moments | bounds).items()}
