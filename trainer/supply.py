"""Supply: each step's completions, from an engine that holds the weights they are meant to be drawn with."""

from __future__ import annotations

from trainer.ahead import Ahead, Batch
from trainer.collect import Collector
from trainer.config import RunConfig
from trainer.distributed import World
from trainer.objectives import Step
from trainer.passes import moments_wanted, old_logprobs
from trainer.policy import Policy
from trainer.recorder import Recorder
from trainer.rollout import Engine
from trainer.rollout.server.engine import ServerEngine
from trainer.stream import Silent
from trainer.sync import Sync


class Supply:
    """Collects a step's completions when they are asked for, or while the step before is learned."""

    def __init__(
        self,
        config: RunConfig,
        attempt: int,
        policy: Policy,
        engine: Engine,
        collector: Collector,
        recorder: Recorder,
        stream: Silent,
        world: World,
    ) -> None:
        self.config, self.attempt, self.policy, self.engine = config, attempt, policy, engine
        self.collector, self.recorder = collector, recorder
        self.sync = Sync(engine, stream, world, config.model.dtype)
        self.old_logprobs = old_logprobs(config, engine.caps)
        self.ahead = Ahead(
            self._collect, engine.abort if world.size == 1 and isinstance(engine, ServerEngine) else None
        )

    def take(self, settings: Step, following: Step | None) -> Batch:
        """Return a step's completions; those of the `following` one begin to be collected where rollouts run ahead."""
        batch = self.ahead.take()
        self.sync.to(settings.step - 1, settings.step)
        if batch is None:
            with self.policy.gathered():
                batch = self._collect(settings)
        if following is not None and self.config.sampling.staleness:
            self.ahead.begin(following)
        return batch

    def current(self, step: int) -> None:
        """Give the engine the weights after a step, once it is free."""
        self.ahead.wait()
        self.sync.to(step, step)

    def sources(self, step: int) -> tuple[bool, bool]:
        """Return whether a step takes its log-probs from sampling, and whether it takes moments from there too.

        Where sampling knows entropies by bounds alone it knows no moments, and the record goes without them.
        """
        caps, moments = self.engine.caps, self.recorder.due(step) or moments_wanted(self.config)
        known = caps.moments or not moments or not caps.exact_entropy
        sampled = self.old_logprobs.choice == "engine" and known
        return sampled, sampled and moments and caps.moments

    def _collect(self, settings: Step) -> Batch:
        """Collect a step's completions; in another thread where they are drawn ahead."""
        batch = Batch(settings)
        _, moments = self.sources(settings.step)
        batch.completions = self.collector.collect(settings, self.attempt, batch.times, batch.figures, moments=moments)
        if self.config.sampling.server.enabled and batch.completions:
            behind = [settings.step - 1 - completion.version for completion in batch.completions]
            batch.figures["rollout/staleness"] = sum(behind) / len(behind)
        return batch
