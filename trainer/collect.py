"""Collecting a rollout batch: prompts to requests, generations to graded completions, watched tokens to live frames."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer import events
from trainer.config import RunConfig
from trainer.events import Frame
from trainer.objectives.base import AuxiliaryPlan
from trainer.policy import Trajectory
from trainer.prompts import Prompts
from trainer.rewards.pool import RewardPool
from trainer.rewards.scoring import Scored
from trainer.rollout import Chunk, Engine, Generation, GenRequest, Groups, SamplerSpec, TapSpec
from trainer.rollout.sampling import seed_of
from trainer.stream import Silent
from trainer.tasks import Row
from trainer.text import Detokenizer, PieceDecoder

WATCHED_PER_GROUP = 4  # several prompts side by side say more than one whole group
MAX_PROMPT_CHARACTERS = 1 << 16
UNSCORED = Scored(None)
TRAIN, EVALUATE, GREEDY = 0, 1, 2  # purposes, so that their random numbers differ


@dataclass
class Completion:
    """One completion of a step: `index` is its place in the step's order, over all processes."""

    index: int
    group: int
    sample: int
    auxiliary: bool
    row: Row
    tokens: Trajectory
    engine_logprob: list[float]
    finish_reason: str
    text: str
    offsets: list[int]
    scored: Scored = UNSCORED
    engine_entropy: list[float] = field(default_factory=list)
    engine_moments: dict[str, list[float]] = field(default_factory=dict)

    @property
    def right(self) -> bool | None:
        """Return whether the answer counts as right (see `is_right`)."""
        return is_right(self.scored)


def is_right(scored: Scored) -> bool | None:
    """Return whether a graded sample is right: by the task's own check where it is rewarded, else reward > 1/2."""
    if scored.reward is None:
        return None
    part = scored.parts.get("task")
    return (part if part is not None else scored.reward) > 0.5


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
    ) -> None:
        self.config, self.prompts, self.engine = config, prompts, engine
        self.pool, self.detokenizer, self.stream = pool, detokenizer, stream

    def collect(
        self,
        step: int,
        attempt: int,
        share: slice,
        temperature: float,
        plan: AuxiliaryPlan | None,
        times: dict[str, float],
        *,
        moments: bool = False,
    ) -> list[Completion]:
        """Return the graded completions of the groups in `share`, ordered by index; adds to `times` (seconds).

        `moments` asks the engine for the moments of each token's distribution.
        """
        began = time.monotonic()
        rows = self.prompts.of_step(step)
        requests = self._requests(step, rows, share, temperature, plan, TapSpec(moments=moments))
        self.stream.begin_step()
        live = LiveView(
            self.stream, attempt, step, self.detokenizer, requests, [self.prompts.train[row] for row in rows]
        )
        generations = self.engine.run(requests, live.chunks, live.progress)
        live.end(generations)
        completions = [
            _completion(request, generation, self.prompts.train[rows[request.group]], self.detokenizer)
            for request, generation in zip(requests, generations, strict=True)
        ]
        completions.sort(key=lambda completion: completion.index)
        times["sample"] = time.monotonic() - began
        began = time.monotonic()
        self.stream.progress(step, "reward", 0, len(completions))
        scored = self.pool.score([c.row for c in completions], [c.text for c in completions])
        for completion, result in zip(completions, scored, strict=True):
            completion.scored = result
        times["reward"] = time.monotonic() - began
        return completions

    def _requests(
        self, step: int, rows: list[int], share: slice, temperature: float, plan: AuxiliaryPlan | None, tap: TapSpec
    ) -> list[GenRequest]:
        sampling, recording = self.config.sampling, self.config.recording
        samples, groups = sampling.samples_per_prompt, sampling.prompts_per_step
        extra = frozenset(range(math.ceil(plan.prompt_share * groups))) if plan else frozenset()
        each = min(samples, WATCHED_PER_GROUP)
        strategy = Groups(
            [
                GenRequest(
                    id=0, group=group, sample=0, prompt_ids=self.prompts.train_ids[rows[group]], seed=0,
                    max_new=sampling.max_completion_tokens,
                    sampler=SamplerSpec(temperature, sampling.top_p, sampling.top_k, sampling.min_p), tap=tap,
                )
                for group in range(groups)[share]
            ],
            samples,
            auxiliary_prompts=extra,
            auxiliary_temperature=plan.temperature if plan else 1.0,
            seed_of=lambda group, sample, aux: seed_of(self.config.seed, TRAIN, step, group, sample, int(aux)),
            id_of=lambda group, sample, aux: (groups * aux + group) * samples + sample,
            watched=lambda group, sample: sample < each and group * each + sample < recording.live_samples,
        )  # fmt: skip
        return strategy.first_wave()


def _completion(request: GenRequest, generation: Generation, row: Row, detokenizer: Detokenizer) -> Completion:
    text, offsets = detokenizer.decode(generation.ids)
    return Completion(
        index=request.id, group=request.group, sample=request.sample, auxiliary=request.auxiliary, row=row,
        tokens=Trajectory(request.prompt_ids, tuple(generation.ids)), engine_logprob=generation.logprob,
        finish_reason=generation.finish_reason, text=text, offsets=offsets,
        engine_entropy=generation.entropy, engine_moments=generation.moments,
    )  # fmt: skip


class LiveView:
    """Writes the frames of one step's watched completions while they grow."""

    def __init__(
        self,
        stream: Silent,
        attempt: int,
        step: int,
        detokenizer: Detokenizer,
        requests: Sequence[GenRequest],
        rows: list[Row],
    ) -> None:
        self.stream, self.attempt, self.step = stream, attempt, step
        self.watched = {request.id: request for request in requests if request.watch}
        self.decoders: dict[int, PieceDecoder] = {index: detokenizer.decoder() for index in self.watched}
        self._progressed = 0.0
        for request in self.watched.values():
            prompt = rows[request.group].prompt[:MAX_PROMPT_CHARACTERS]
            self._frame(
                events.KIND_PROMPT, request.id, {"group": request.group, "sample": request.sample, "prompt": prompt}
            )

    def chunks(self, chunks: Sequence[Chunk]) -> None:
        """Write a TOKENS frame for each chunk."""
        for chunk in chunks:
            texts = [self.decoders[chunk.id].feed(index).encode()[:65535] for index in chunk.ids]
            payload = b"".join([
                np.asarray(chunk.ids, "<u4").tobytes(),
                np.asarray([len(text) for text in texts], "<u2").tobytes(),
                np.asarray(chunk.entropy, "<f2").tobytes(),
                np.asarray(chunk.logprob, "<f4").clip(-65504, 0).astype("<f2").tobytes(),
                *texts,
            ])  # fmt: skip
            if len(payload) <= events.FRAME_MAX_PAYLOAD:
                count = len(chunk.ids)
                self.stream.frame(
                    Frame(events.KIND_TOKENS, self.attempt, self.step, chunk.id, chunk.first, count, payload)
                )

    def progress(self, done: int, total: int) -> None:
        """Write a progress frame, at most ten a second."""
        now = time.monotonic()
        if done == total or now - self._progressed >= 0.1:
            self.stream.progress(self.step, "sample", done, total)
            self._progressed = now

    def end(self, generations: Sequence[Generation]) -> None:
        """Write why each watched completion ended."""
        for generation in generations:
            if generation.id in self.watched:
                self._frame(events.KIND_END, generation.id, {"finish_reason": generation.finish_reason})

    def _frame(self, kind: int, rollout: int, content: dict[str, object]) -> None:
        self.stream.frame(Frame(kind, self.attempt, self.step, rollout, payload=json.dumps(content).encode()))
