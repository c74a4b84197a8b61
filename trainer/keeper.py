"""Keeper: the checkpoints of an attempt, from the one it resumes to the last one it writes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import checkpoint
from trainer.config import RunConfig
from trainer.control import Steering
from trainer.distributed import World
from trainer.events import RunFolder
from trainer.optimiser import Optimiser
from trainer.policy import Policy
from trainer.stream import Silent
from trainer.surroundings import config_hash, versions


@dataclass(frozen=True)
class Kept:
    """What has a state that a checkpoint holds."""

    policy: Policy
    optimiser: Optimiser
    steering: Steering


class Keeper:
    """Finds the newest whole checkpoint, puts an attempt back to where that one was, and writes further ones."""

    def __init__(self, folder: RunFolder, config: RunConfig, attempt: int, stream: Silent, world: World) -> None:
        """Raises RunFailed where checkpoints were written and none is whole."""
        self.folder, self.config, self.attempt, self.stream, self.world = folder, config, attempt, stream, world
        self.resumed, self.complaints = checkpoint.newest(folder)

    def sources(self, source: Path) -> tuple[Path, Path | None]:
        """Return where the policy's weights and its adapters are loaded from, for a run that began with `source`."""
        if self.resumed is None:
            return source, None
        if self.config.model.lora.enabled:
            return source, self.resumed / checkpoint.ADAPTER
        return self.resumed, None

    def restore(self, kept: Kept) -> tuple[int, int]:
        """Put everything besides the weights back and return steps done and tokens generated; (0, 0) at the start."""
        if self.resumed is None:
            return 0, 0
        state, tensors = checkpoint.load_state(self.resumed)
        kept.policy.budget = min(kept.policy.budget, state["budget"])
        kept.steering.load(state["steering"])
        kept.optimiser.load(tensors["optimiser"])
        if len(tensors["rng"]) == self.world.size:
            checkpoint.set_rng_state(tensors["rng"][self.world.rank])
        if state["config_hash"] != config_hash(self.config):
            self.complaints.append(
                f"{self.resumed.name} was written under another config; the run goes on under the present one"
            )
        return state["step"], state["tokens"]

    def due(self, step: int) -> bool:
        """Return whether a checkpoint follows a step: the last, and every `every_steps`."""
        every = self.config.checkpoint.every_steps
        return step == self.config.optimiser.steps or bool(every and step % every == 0)

    def save(self, step: int, tokens: int, kept: Kept) -> None:
        """Write the checkpoint of a finished step, unless it is there already; all processes must call this.

        `tokens` were generated up to its end. Raises ResourceError where the disk is full.
        """
        if self.resumed and self.resumed == self.folder.checkpoint(step):
            return
        tensors = {"optimiser": kept.optimiser.state(), "rng": self.world.gather(checkpoint.rng_state())}
        with kept.policy.gathered():
            if self.world.main:
                self._write(step, tokens, kept, tensors)
        self.world.barrier()

    def _write(self, step: int, tokens: int, kept: Kept, tensors: dict[str, Any]) -> None:
        began, stream = time.monotonic(), self.stream
        stream.progress(step, "save", 0, 1)
        path = checkpoint.save(self.folder, step, kept.policy, self._state(step, tokens, kept), tensors)
        stream.emit(
            "checkpoint",
            step,
            path=str(path.relative_to(self.folder.path)),
            bytes=checkpoint.size(path),
            final=step == self.config.optimiser.steps,
        )
        for old in checkpoint.prune(self.folder, self.config.checkpoint.keep):
            stream.emit("checkpoint_removed", step, path=str(old.relative_to(self.folder.path)))
        stream.emit("metrics", step, values={"time/save": time.monotonic() - began})

    def _state(self, step: int, tokens: int, kept: Kept) -> dict[str, Any]:
        return {
            "step": step,
            "prompts": step * self.config.sampling.prompts_per_step,  # data position: order follows from the seed
            "seq": self.stream.seq,
            "attempt": self.attempt,
            "tokens": tokens,
            "budget": kept.policy.budget,
            "learning_rate": kept.optimiser.rate(step),
            "steering": kept.steering.state(),
            "config_hash": config_hash(self.config),
            "versions": versions(),
        }
