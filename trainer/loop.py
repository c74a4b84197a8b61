"""The loop: sample, score, advantage, loss, step, report. It names no task, reward or objective.

Every step works on one rollout batch: a few prompts, a group of completions each. `Trainer.run` reads top to bottom;
the verbs live in supply.py, update.py, report.py, recorder.py, evaluation.py and keeper.py.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from trainer.ahead import Batch
from trainer.balance import balanced
from trainer.collect import Collector
from trainer.completion import Completion
from trainer.config import RunConfig
from trainer.control import Steering
from trainer.distributed import World
from trainer.evaluation import Evaluator
from trainer.events import Control, RunFolder
from trainer.footprint import Footprint, foretold
from trainer.health import Health
from trainer.keeper import Keeper, Kept
from trainer.loading import load_tokenizer
from trainer.mismatch import MismatchAlert
from trainer.models import resolve
from trainer.objectives import Objective, Step
from trainer.opening import announce
from trainer.optimiser import Optimiser
from trainer.policy import Policy
from trainer.prompts import Prompts
from trainer.recorder import RECORDED, Recorder
from trainer.report import line, measured, observation, ungraded
from trainer.rewards.pool import RewardPool
from trainer.rollout.choice import foresee, generator
from trainer.stream import Silent
from trainer.supply import Supply
from trainer.surroundings import microbatch_tokens, seed_everything
from trainer.update import Update, Updater


class Trainer:
    """One attempt at one run."""

    def __init__(self, folder: RunFolder, config: RunConfig, attempt: int, stream: Silent, world: World) -> None:
        """Load everything, weights last; raises ConfigError, ResourceError or RunFailed saying what does not fit."""
        self.config, self.attempt, self.stream, self.world = config, attempt, stream, world
        self.signalled = False
        self.health = Health(stream)
        self.mismatch = MismatchAlert(stream, config.model.dtype, stale=config.sampling.staleness > 0)
        seed_everything(config.seed)
        self.keeper = Keeper(folder, config, attempt, stream, world)
        model = resolve(config.model.source)
        foresee(config, model.info)
        self.prompts = Prompts(config, load_tokenizer(model.path), model.info.context)
        self.pool = RewardPool(config.task, config.rewards)
        self.objective = Objective(config.objective)
        self.steering = Steering(config, self.objective, folder)
        self.recorder = Recorder(folder, config, world)
        self.policy = self._loaded(*self.keeper.sources(model.path))
        self.policy.budget = microbatch_tokens(config, world.device)
        self._sampling(folder)
        self._learning(model.path)
        self.done, self.tokens = self.keeper.restore(self.kept)

    def _loaded(self, path: Path, adapter: Path | None = None) -> Policy:
        sharded = self.config.resources.sharding == "fsdp2"
        policy = Policy(path, self.config.model, self.world.device, adapter=adapter, world=self.world, sharded=sharded)
        policy.output.use(self.config.resources.head_contract, self.config.resources.kernel)
        return policy

    def _sampling(self, folder: RunFolder) -> None:
        """Make what generates and grades."""
        config, policy, world = self.config, self.policy, self.world
        engine = generator(config, policy, world, folder)
        aside = world.aside() if config.sampling.staleness else world
        self.collector = Collector(
            config, self.prompts, engine, self.pool, policy.detokenizer, self.stream, aside, self.objective
        )
        self.collector.special |= policy.stop_ids  # a model may end with tokens its tokenizer calls ordinary
        self.supply = Supply(config, self.attempt, policy, engine, self.collector, self.recorder, self.stream, world)
        self.evaluator = Evaluator(config, self.prompts, engine, self.pool, policy.detokenizer, world)

    def _learning(self, source: Path) -> None:
        """Make what moves the weights."""
        config, policy, reference = self.config, self.policy, None
        self.optimiser = Optimiser(policy.parameters, config.optimiser, policy.placement)
        if {"ref_logprob", "hellinger"} & self.objective.needs and not config.model.lora.enabled:
            reference = self._loaded(source)
            reference.budget = policy.budget
        self.updater = Updater(policy, reference, self.objective, self.optimiser, self.world)
        self.memory = foretold(config, source, self.world.device)
        self.footprint = Footprint(policy, reference, self.optimiser, self.memory)
        self.kept = Kept(policy, self.optimiser, self.steering)

    def run(self) -> tuple[str, str]:
        """Train to the end or until asked to stop; return (status, reason)."""
        total = self.config.optimiser.steps
        announce(self)
        if self.done == 0:
            self._evaluate(0)
        for step in range(self.done + 1, total + 1):
            control = self._listen(step)
            if self.signalled or control.stop:
                return self._end()
            self._step(step)
        return "finished", f"all {total} steps done"

    def close(self) -> None:
        """End the children that grade and what the engine holds."""
        self.supply.ahead.drop(wait=self.world.size == 1)
        self.pool.close()
        self.supply.engine.close()

    # -- a step -----------------------------------------------------------------------------------------------------

    def _step(self, step: int) -> None:
        """Collect, update, measure, record, keep."""
        began, settings = time.monotonic(), self._settings(step)
        batch = self.supply.take(settings, self._settings(step + 1) if step < self.config.optimiser.steps else None)
        settings.knobs["temperature"] = batch.settings.knobs["temperature"]
        completions = balanced(batch.completions, self.world, self.config.optimiser.minibatches_per_step)
        update = self._update(settings, completions, batch.times)
        metrics = self._measured(step, update, completions, batch)
        if self.recorder.due(step):
            self.recorder.record(step, completions, update, settings, self.stream, self.attempt)
        if "entropy/mean" in metrics:
            metrics |= self.steering.observe(observation(step, self.config.optimiser.steps, metrics), self.stream)
        self.done = step
        self._report(step, metrics, batch.times, time.monotonic() - began)
        self._evaluate(step)
        if self.keeper.due(step):
            self._save()

    def _settings(self, step: int) -> Step:
        """Return what parts of the objective may read in a step."""
        settings = self.steering.step(step)
        settings.vocabulary = self.policy.vocabulary
        return settings

    def _update(self, settings: Step, completions: list[Completion], times: dict[str, float]) -> Update:
        """Score the completions, apply the objective and move the weights, while the engine rests."""
        sampled, moments = self.supply.sources(settings.step)
        self.supply.engine.rest()
        self.stream.progress(settings.step, "update", 0, 1)
        minibatches, temperature = self.config.optimiser.minibatches_per_step, settings.knobs["temperature"]
        also = RECORDED if self.recorder.due(settings.step) and (moments or not sampled) else ()
        return self.updater.update(completions, settings, minibatches, temperature, times, also=also, sampled=sampled)

    def _measured(self, step: int, update: Update, completions: list[Completion], batch: Batch) -> dict[str, float]:
        """Return the figures of a step; alerts where engine and trainer part, raises RunFailed where too much fails."""
        sampled, _ = self.supply.sources(step)
        exact = self.supply.engine.caps.exact_entropy or not sampled
        metrics = measured(update, completions, batch.figures, self.world, exact=exact)
        metrics |= self._figures(step, int(metrics.pop("tokens/generated")))
        self.mismatch.check(step, metrics)
        self.health.check(step, update, *ungraded(completions, self.world))
        return metrics

    def _figures(self, step: int, generated: int) -> dict[str, float]:
        """Return what the run itself knows of a step in which so many tokens were generated: rate, knobs, totals."""
        self.tokens += generated
        figures = {f"knob/{name}": value for name, value in self.steering.knobs.items()}
        figures |= {
            "lr": self.optimiser.rate(step),
            "tokens/total": float(self.tokens),
            "tokens/step": float(generated),
        }
        band = self.steering.target(step)
        if band is not None:
            figures |= {"entropy/target_low": band[0], "entropy/target_high": band[1]}
        return figures

    def _report(self, step: int, metrics: dict[str, float], times: dict[str, float], seconds: float) -> None:
        metrics |= {f"time/{name}": value for name, value in times.items()}
        metrics |= {"time/step": seconds, **self.supply.sync.figures(), **self.footprint.figures()}
        metrics["tokens/per_second"] = metrics.pop("tokens/step") / seconds
        self.stream.emit("metrics", step, values=metrics)
        if self.world.main:
            print(line(step, self.config.optimiser.steps, metrics), flush=True)

    # -- around steps -----------------------------------------------------------------------------------------------

    def _listen(self, step: int) -> Control:
        """Agree on the latest request and on a signal over all processes, and let it take effect."""
        control, signalled = self.world.broadcast(
            (self.steering.read(step, self.stream), self.signalled) if self.world.main else None
        )
        self.signalled = signalled
        self.steering.apply(control, step, self.stream)
        return control

    def _end(self) -> tuple[str, str]:
        """Keep what there is, and return how and why the attempt ends before its last step."""
        self.supply.ahead.drop()
        self._save()
        if self.signalled:
            return "interrupted", f"asked to end after step {self.done}; a checkpoint was written"
        return "stopped", f"stopped on request after step {self.done}; a checkpoint was written"

    def _save(self) -> None:
        self.keeper.save(self.done, self.tokens, self.kept)

    def _evaluate(self, step: int) -> None:
        if not self.evaluator.due(step):
            return
        began = time.monotonic()
        self.supply.current(step)
        with self.policy.gathered():
            values = self.evaluator.evaluate(step, self.stream)
        self.stream.emit("metrics", step, values={"time/evaluate": time.monotonic() - began})
        if self.world.main:
            print(
                f"step {step}: held out " + "  ".join(f"{name} {value:.3f}" for name, value in values.items()),
                flush=True,
            )


def listen_to_signals(trainer: Trainer) -> None:
    """SIGTERM and the first SIGINT let the step finish and write a checkpoint; a second SIGINT ends at once."""

    def ask(number: int, frame: Any) -> None:
        trainer.signalled = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
