"""Weights to the engine, and whether they arrived: a probe after every sync, an alert where it is off."""

from __future__ import annotations

import time

from trainer.distributed import World
from trainer.rollout import Engine
from trainer.stream import Silent

# Nats between engine and trainer on the probe's text. An engine that kept old weights is soon off by more; rounding
# and other kernels are off by less: 3e-6 was seen in float32 on a CPU; in bfloat16 single tokens of vLLM's were up to
# 0.48 off a trainer's, and a trainer's up to 0.66 off its own with other rows beside them (Qwen2.5-0.5B, TRL #6789).
LIMITS = {"float32": 0.01, "bfloat16": 0.5}


class Sync:
    """Keeps an engine's weights those of the trainer."""

    def __init__(self, engine: Engine, stream: Silent, world: World, dtype: str) -> None:
        self.engine, self.stream, self.world, self.limit = engine, stream, world, LIMITS[dtype]
        self.alerted, self.restarts, self.step = False, 0, 0
        self._figures: dict[str, float] = {}

    def to(self, version: int, step: int) -> None:
        """Give the engine the weights after so many updates, if it lacks them; all processes must call this."""
        began, self.step = time.monotonic(), step
        if not self.engine.sync_weights(version):
            return
        probe = max(self.world.gather(self.engine.probe()))
        seconds = time.monotonic() - began
        self._figures = {"sync/probe": probe, "time/sync": self._figures.get("time/sync", 0.0) + seconds}
        wrong = not probe <= self.limit  # NaN too
        if wrong and not self.alerted:
            self.stream.emit(
                "alert",
                step,
                code="sync",
                message=f"after the weights were copied, engine and trainer differ by {probe:.3g} nats on the probe's "
                f"text (limit {self.limit}): completions do not come from the policy under training; stop the run and "
                "choose hf for sampling.engine",
            )
        self.alerted = wrong

    def figures(self) -> dict[str, float]:
        """Return seconds and difference of the syncs since the last call; nothing where there was none.

        Tells people of an engine that was started anew meanwhile; all processes must call this.
        """
        restarts = max(self.world.gather(self.engine.restarts))
        if restarts > self.restarts:
            message = "the engine failed and was started anew; nothing was lost, and the log says what it was"
            self.stream.emit("warning", self.step, code="engine", message=message)
        self.restarts = restarts
        found, self._figures = self._figures, {}
        return found
