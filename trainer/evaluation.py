"""Measuring the policy on held-out prompts: avg@k, pass@k, maj@k, greedy and distinct right answers."""

from __future__ import annotations

import time

from trainer.collect import EVALUATE, GREEDY
from trainer.completion import is_right
from trainer.config import RunConfig
from trainer.distributed import World
from trainer.evaluation_metrics import Sample, avg_at_k, summary
from trainer.prompts import Prompts
from trainer.rewards.pool import RewardPool
from trainer.rollout import Engine, GenRequest, TapSpec
from trainer.rollout.sampling import seed_of
from trainer.stream import Silent
from trainer.text import Detokenizer


class Evaluator:
    """Measures the same prompts with the same random numbers each time, so that only the policy differs."""

    def __init__(
        self,
        config: RunConfig,
        prompts: Prompts,
        engine: Engine,
        pool: RewardPool,
        detokenizer: Detokenizer,
        world: World,
    ) -> None:
        self.config, self.prompts, self.engine = config, prompts, engine
        self.pool, self.detokenizer, self.world = pool, detokenizer, world

    def due(self, step: int) -> bool:
        """Return whether a step is measured: step 0, the last, and every `every_steps`; never where that is 0."""
        every, last = self.config.evaluation.every_steps, self.config.optimiser.steps
        return bool(every and self.prompts.held_out) and (step % every == 0 or step == last)

    def evaluate(self, step: int, stream: Silent) -> dict[str, float]:
        """Measure, emit the `evaluation` event and return its figures."""
        began, settings = time.monotonic(), self.config.evaluation
        stream.progress(step, "evaluate", 0, len(self.prompts.held_out))
        sampled = self._samples(settings.samples_per_prompt, settings.temperature, EVALUATE)
        values = summary(sampled)
        if settings.greedy:
            greedy = avg_at_k(self._samples(1, 0.0, GREEDY))
            values |= {} if greedy is None else {"greedy": greedy}
        seconds = time.monotonic() - began
        stream.emit(
            "evaluation",
            step,
            values=values,
            prompts=len(sampled),
            samples=settings.samples_per_prompt,
            seconds=seconds,
        )
        return values

    def _samples(self, samples: int, temperature: float, purpose: int) -> list[list[Sample]]:
        """Return (right, canonical answer) of every sample of every held-out prompt."""
        sampling = self.config.sampling
        mine = range(len(self.prompts.held_out))[self.world.rank :: self.world.size]
        requests = [
            GenRequest(
                id=prompt * samples + sample, group=prompt, sample=sample, prompt_ids=self.prompts.held_out_ids[prompt],
                seed=seed_of(self.config.seed, purpose, prompt, sample), max_new=sampling.max_completion_tokens,
                sampler=sampling.drawn_at(temperature), tap=TapSpec(entropy="none"),
            )
            for prompt in mine
            for sample in range(samples)
        ]  # fmt: skip
        generations = self.engine.run(requests) if requests else []
        texts = [self.detokenizer.decode(generation.ids)[0] for generation in generations]
        scored = self.pool.score([self.prompts.held_out[request.group] for request in requests], texts)
        found: dict[int, list[Sample]] = {prompt: [] for prompt in mine}
        for request, result in zip(requests, scored, strict=True):
            found[request.group].append((is_right(result), result.canonical))
        joined = {prompt: samples for part in self.world.gather(found) for prompt, samples in part.items()}
        return [joined[prompt] for prompt in sorted(joined)]
