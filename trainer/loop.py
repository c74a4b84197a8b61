"""The loop: sample, score, advantage, loss, step, report. It names no task, reward or objective.

Every step works on one rollout batch: a few prompts, a group of completions each. `Trainer.run` reads top to bottom;
the verbs live in collect.py, update.py, report.py, recorder.py, evaluation.py and checkpoint.py.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from trainer import checkpoint
from trainer.ahead import Ahead, Batch
from trainer.balance import balanced
from trainer.collect import Collector
from trainer.config import RunConfig
from trainer.control import Steering
from trainer.distributed import World
from trainer.evaluation import Evaluator
from trainer.events import Choice, Control, RunFolder
from trainer.footprint import Footprint, foretold
from trainer.health import Health
from trainer.kernels import choose_room
from trainer.mismatch import MismatchAlert
from trainer.models import resolve
from trainer.objectives import Objective, Step
from trainer.optimiser import Optimiser
from trainer.passes import entropy_estimate, head_contract, moments_wanted, old_logprobs
from trainer.policy import Policy
from trainer.prompts import Prompts
from trainer.recorder import RECORDED, Recorder
from trainer.report import answers, by_template, observation, step_metrics, ungraded
from trainer.rewards.pool import RewardPool
from trainer.rollout.choice import generator
from trainer.rollout.server.engine import ServerEngine
from trainer.stream import Silent
from trainer.surroundings import config_hash, microbatch_tokens, seed_everything, versions
from trainer.sync import Sync
from trainer.update import Updater


class Trainer:
    """One attempt at one run."""

    def __init__(self, folder: RunFolder, config: RunConfig, attempt: int, stream: Silent, world: World) -> None:
        """Load everything; raises ConfigError or RunFailed saying what does not fit."""
        self.folder, self.config, self.attempt, self.stream, self.world = folder, config, attempt, stream, world
        self.signalled = False
        self.done, self.tokens, self.health = 0, 0, Health(stream)
        seed_everything(config.seed)
        resumed, complaints = checkpoint.newest(folder)
        self.resumed, self.complaints = resumed, complaints
        source = resolve(config.model.source).path
        self.policy = self._policy(source, resumed)
        self.policy.budget = microbatch_tokens(config, world.device)
        self.objective = Objective(config.objective)
        self.steering = Steering(config, self.objective, folder)
        self.prompts = Prompts(config, self.policy.tokenizer, self.policy.context)
        self.pool = RewardPool(config.task, config.rewards)
        rollouts = generator(config, self.policy, world, folder)
        self.sync = Sync(rollouts, stream, world, config.model.dtype)
        self.mismatch = MismatchAlert(stream, config.model.dtype, stale=config.sampling.staleness > 0)
        self.old_logprobs = old_logprobs(config, rollouts.caps)
        detokenizer = self.policy.detokenizer
        self.collector = Collector(
            config, self.prompts, rollouts, self.pool, detokenizer, stream,
            world.aside() if config.sampling.staleness else world, self.objective,
        )  # fmt: skip
        self.collector.special |= self.policy.stop_ids  # a model may end with tokens its tokenizer calls ordinary
        self.ahead = Ahead(
            self._draw, rollouts.abort if world.size == 1 and isinstance(rollouts, ServerEngine) else None
        )
        self.evaluator = Evaluator(config, self.prompts, rollouts, self.pool, detokenizer, world)
        self.optimiser = Optimiser(self.policy.parameters, config.optimiser, self.policy.placement)
        reference = None
        if {"ref_logprob", "hellinger"} & self.objective.needs and not config.model.lora.enabled:
            reference = self._load(source)
            reference.budget = self.policy.budget
        self.updater = Updater(self.policy, reference, self.objective, self.optimiser, world)
        self.recorder = Recorder(folder, config, world)
        self.memory = foretold(config, source, world.device)
        self.footprint = Footprint(self.policy, reference, self.optimiser, self.memory)
        if resumed:
            self._restore(resumed)

    def run(self) -> tuple[str, str]:
        """Train to the end or until asked to stop; return (status, reason)."""
        total = self.config.optimiser.steps
        self._started()
        if self.done == 0:
            self._evaluate(0)
        for step in range(self.done + 1, total + 1):
            control = self._listen(step)
            if self.signalled or control.stop:
                self.ahead.drop()
                self._save(final=False)
                if self.signalled:
                    return "interrupted", f"asked to end after step {self.done}; a checkpoint was written"
                return "stopped", f"stopped on request after step {self.done}; a checkpoint was written"
            began, settings = time.monotonic(), self._settings(step)
            batch = self._rollouts(settings)
            times, figures = batch.times, batch.figures
            temperature = settings.knobs["temperature"] = batch.settings.knobs["temperature"]

            recorded = self.recorder.due(step)
            sampled, _ = self._sources(recorded)
            completions = balanced(batch.completions, self.world, self.config.optimiser.minibatches_per_step)
            self.collector.engine.rest()
            self.stream.progress(step, "update", 0, 1)
            minibatches = self.config.optimiser.minibatches_per_step
            also = RECORDED if recorded else ()
            update = self.updater.update(
                completions, settings, minibatches, temperature, times, also=also, sampled=sampled
            )
            metrics = step_metrics(update, answers(completions, self.world)) | _means(self.world.gather(figures))
            metrics |= by_template(update, completions, self.world)
            metrics |= self._figures(step, int(metrics.pop("tokens/generated")))
            self.mismatch.check(step, metrics)
            self.health.check(step, update, *ungraded(completions, self.world))
            if recorded:
                self.recorder.record(step, completions, update, settings, self.stream, self.attempt)
            if "entropy/mean" in metrics:
                metrics |= self.steering.observe(observation(step, total, metrics), self.stream)

            self.done = step
            self._report(step, metrics, times, time.monotonic() - began)
            self._evaluate(step)
            every = self.config.checkpoint.every_steps
            if step == total or (every and step % every == 0):
                self._save(final=step == total)
        return "finished", f"all {total} steps done"

    def close(self) -> None:
        """End the children that grade and what the engine holds."""
        self.ahead.drop(wait=self.world.size == 1)
        self.pool.close()
        self.collector.engine.close()

    # -- before and between steps -------------------------------------------------------------------------------

    def _policy(self, source: Any, resumed: Any) -> Policy:
        """Load the policy to train: the checkpoint's where there is one (for LoRA the source and saved adapters)."""
        if resumed is None:
            return self._load(source)
        if self.config.model.lora.enabled:
            return self._load(source, adapter=resumed / checkpoint.ADAPTER)
        return self._load(resumed)

    def _load(self, path: Any, adapter: Any = None) -> Policy:
        sharded = self.config.resources.sharding == "fsdp2"
        policy = Policy(path, self.config.model, self.world.device, adapter=adapter, world=self.world, sharded=sharded)
        policy.output.use(self.config.resources.head_contract, self.config.resources.kernel)
        return policy

    def _started(self) -> None:
        self.stream.emit(
            "started",
            self.done,
            resume_step=self.done,
            total_steps=self.config.optimiser.steps,
            pid=os.getpid(),
            device=str(self.world.device),
            parameters=self.policy.total_parameters,
            vocabulary=self.policy.vocabulary,
            knobs=self.steering.described(),
            versions=versions(),
            plan=self._plan(),
            memory={phase.name: phase.parts for phase in self.memory.phases} if self.memory else {},
        )
        for complaint in self.complaints:
            self.stream.emit("warning", self.done, code="checkpoint", message=complaint)
        if self.attempt > 1 and self.resumed is None:
            message = "the attempts before wrote no checkpoint; this one starts at step 0"
            self.stream.emit("warning", 0, code="resume", message=message)

    def _settings(self, step: int) -> Step:
        """Return what parts of the objective may read in a step."""
        settings = self.steering.step(step)
        settings.vocabulary = self.policy.vocabulary
        return settings

    def _rollouts(self, settings: Step) -> Batch:
        """Return a step's completions: drawn now, or while the step before was learned; then the next ones begin."""
        batch = self.ahead.take()
        self.sync.to(settings.step - 1, settings.step)
        if batch is None:
            with self.policy.gathered():
                batch = self._draw(settings)
        if self.config.sampling.staleness and settings.step < settings.total_steps:
            self.ahead.begin(self._settings(settings.step + 1))
        return batch

    def _draw(self, settings: Step) -> Batch:
        """Collect a step's completions; in another thread where they are drawn ahead."""
        batch = Batch(settings)
        _, moments = self._sources(self.recorder.due(settings.step))
        batch.completions = self.collector.collect(settings, self.attempt, batch.times, batch.figures, moments=moments)
        if self.config.sampling.server.enabled and batch.completions:
            behind = [settings.step - 1 - completion.version for completion in batch.completions]
            batch.figures["rollout/staleness"] = sum(behind) / len(behind)
        return batch

    def _sources(self, recorded: bool) -> tuple[bool, bool]:
        """Return whether a step takes its log-probs from sampling, and whether it takes moments from there too."""
        moments = recorded or moments_wanted(self.config)
        sampled = self.old_logprobs.choice == "engine" and (self.collector.engine.caps.moments or not moments)
        return sampled, sampled and moments

    def _plan(self) -> dict[str, Any]:
        """Return how this attempt computes, and why, by what was chosen."""
        forward, (room, why) = self.policy.forward, choose_room(self.world.device, self.config.resources.kernel)
        chosen = {
            "old_logprobs": self.old_logprobs,
            "head": head_contract(self.config),
            "kernel": Choice(choice=room, why=why),
            "micro_batches": Choice(choice=f"{forward.name}, up to {self.policy.budget:,} tokens", why=forward.why),
        }
        if estimate := entropy_estimate(self.old_logprobs, self.collector.engine.caps):
            chosen["entropy"] = estimate
        return {name: choice.model_dump() for name, choice in chosen.items()}

    def _listen(self, step: int) -> Control:
        """Agree on the latest request and on a signal over all processes, and let it take effect."""
        control, signalled = self.world.broadcast(
            (self.steering.read(step, self.stream), self.signalled) if self.world.main else None
        )
        self.signalled = signalled
        self.steering.apply(control, step, self.stream)
        return control

    # -- after a step ---------------------------------------------------------------------------------------------

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
        metrics |= {"time/step": seconds, **self.sync.figures(), **self.footprint.figures()}
        metrics["tokens/per_second"] = metrics.pop("tokens/step") / seconds
        self.stream.emit("metrics", step, values=metrics)
        if self.world.main:
            print(line(step, self.config.optimiser.steps, metrics), flush=True)

    def _evaluate(self, step: int) -> None:
        if not self.evaluator.due(step):
            return
        began = time.monotonic()
        self.ahead.wait()
        self.sync.to(step, step)
        with self.policy.gathered():
            values = self.evaluator.evaluate(step, self.stream)
        self.stream.emit("metrics", step, values={"time/evaluate": time.monotonic() - began})
        if self.world.main:
            print(
                f"step {step}: held out " + "  ".join(f"{name} {value:.3f}" for name, value in values.items()),
                flush=True,
            )

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _save(self, *, final: bool) -> None:
        """Write a checkpoint of the last finished step, unless it is there already."""
        if self.resumed and self.resumed == self.folder.checkpoint(self.done):
            return
        tensors = {"optimiser": self.optimiser.state(), "rng": self.world.gather(checkpoint.rng_state())}
        with self.policy.gathered():
            if self.world.main:
                self._write(tensors, final=final)
        self.world.barrier()

    def _write(self, tensors: dict[str, Any], *, final: bool) -> None:
        began = time.monotonic()
        self.stream.progress(self.done, "save", 0, 1)
        path = checkpoint.save(self.folder, self.done, self.policy, self._state(), tensors)
        self.stream.emit(
            "checkpoint",
            self.done,
            path=str(path.relative_to(self.folder.path)),
            bytes=checkpoint.size(path),
            final=final,
        )
        for old in checkpoint.prune(self.folder, self.config.checkpoint.keep):
            self.stream.emit("checkpoint_removed", self.done, path=str(old.relative_to(self.folder.path)))
        self.stream.emit("metrics", self.done, values={"time/save": time.monotonic() - began})

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.done,
            "prompts": self.done * self.config.sampling.prompts_per_step,  # data position: order follows from the seed
            "seq": self.stream.seq,
            "attempt": self.attempt,
            "tokens": self.tokens,
            "budget": self.policy.budget,
            "learning_rate": self.optimiser.rate(self.done),
            "steering": self.steering.state(),
            "config_hash": config_hash(self.config),
            "versions": versions(),
        }

    def _restore(self, path: Any) -> None:
        state, tensors = checkpoint.load_state(path)
        self.done, self.tokens = state["step"], state["tokens"]
        self.policy.budget = min(self.policy.budget, state["budget"])
        self.steering.load(state["steering"])
        self.optimiser.load(tensors["optimiser"])
        if len(tensors["rng"]) == self.world.size:
            checkpoint.set_rng_state(tensors["rng"][self.world.rank])
        if state["config_hash"] != config_hash(self.config):
            self.complaints.append(
                f"{path.name} was written under another config; the run goes on under the present one"
            )


def _means(parts: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over the processes that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    values = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def line(step: int, total: int, metrics: dict[str, float]) -> str:
    """Return one step as one readable line."""
    shown = {"reward": "reward/mean", "entropy": "entropy/mean", "distinct": "reward/distinct", "grad": "grad/norm"}
    figures = "  ".join(f"{name} {metrics[key]:.3f}" for name, key in shown.items() if key in metrics)
    return f"step {step}/{total}  {figures}  {metrics['time/step']:.2f} s"


def listen_to_signals(trainer: Trainer) -> None:
    """SIGTERM and the first SIGINT let the step finish and write a checkpoint; a second SIGINT ends at once."""

    def ask(number: int, frame: Any) -> None:
        trainer.signalled = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
