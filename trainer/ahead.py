"""Ahead: the next step's rollouts, collected in a thread while this step is learned (sampling.staleness 1).

The engine is another process then, so the two hardly disturb each other. What is promised: each completion names the
weights it was drawn with, which are those at most one update before the step's; prompts, order and random numbers are
the same as without; knobs that sampling reads (the temperature) act one step later. After a resume the first batch is
drawn anew with the checkpoint's weights, so a resumed run follows its own course from there.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from trainer.completion import Completion
from trainer.objectives import Step


@dataclass
class Batch:
    """The completions of this process's share of a step, and what collecting them took and told."""

    settings: Step  # as they were when it was drawn
    completions: list[Completion] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)  # seconds
    figures: dict[str, float] = field(default_factory=dict)


class Ahead:
    """At most one batch that is being collected, or waits to be taken."""

    def __init__(self, collect: Callable[[Step], Batch], abort: Callable[[], None] | None) -> None:
        """`collect` runs in the thread; `abort` makes it raise soon, for good.

        There is none where it collects together with other processes, which would wait for it.
        """
        self.collect, self.abort = collect, abort
        self.batch: Future[Batch] | None = None
        self._threads = ThreadPoolExecutor(1, "rollouts")

    def begin(self, settings: Step) -> None:
        """Start collecting a step; nothing in `settings` is shared with whoever gave them."""
        self.batch = self._threads.submit(self.collect, copy.deepcopy(settings))

    def wait(self) -> None:
        """Wait until the engine is free; raises what went wrong in the thread."""
        if self.batch is not None:
            self.batch.result()

    def take(self) -> Batch | None:
        """Return the batch that was begun, waiting for it; None where there is none."""
        if self.batch is None:
            return None
        began, batch = time.monotonic(), self.batch.result()
        self.batch = None
        return Batch(
            batch.settings, batch.completions, {**batch.times, "wait": time.monotonic() - began}, batch.figures
        )

    def drop(self, *, wait: bool = True) -> None:
        """Call off what is being collected, or wait for its end, and forget it; nothing can be begun afterwards."""
        if self.batch is not None and not self.batch.done() and self.abort:
            self.abort()
        self._threads.shutdown(wait=wait)
        self.batch = None
