"""RewardPool: grades completions in killable children, so that one bad sample costs one sample.

Completions are hostile: a tower of powers never returns from C, a long number eats the memory, a parser may crash the
interpreter. A child grades one sample at a time and answers after each; the parent kills it at the deadline, starts
another and hands it the rest. What timed out, crashed or raised is an invalid sample (reward None), counted apart from
"wrong"; after sixteen timeouts in a row the rest of a call is not tried. Tasks and rewards marked `inline` (linear
time, evaluate nothing) are graded in this process without a child.
"""

from __future__ import annotations

import select
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trainer.errors import ConfigError, RunFailed
from trainer.rewards.base import Reward
from trainer.rewards.child import describe
from trainer.rewards.scoring import Scored, score_sample
from trainer.rewards.worker import Gone, Worker
from trainer.tasks.base import Row, Task

BATCH_SAMPLES = 32
BATCH_CHARACTERS = 1 << 20
HANGS = 16  # samples in a row that miss the deadline; what comes behind them in the call is not tried
NOT_TRIED = f"timeout: not tried, because the {HANGS} before it took too long"
COUNTED = {"timeout": "timeouts", "crash": "crashes", "error": "errors"}


class RewardPool:
    """Grades (row, completion) pairs in order; `counts` holds all samples and the invalid ones by reason.

    `deadline_seconds` is per sample, `memory_bytes` the address space of a child, `recycle_after` the samples after
    which a child is replaced (between calls, or when it falls idle). Use as a context manager or call `close`.
    Not thread-safe: one thread calls `score` at a time.
    """

    def __init__(
        self,
        task: Task,
        rewards: Sequence[Reward],
        *,
        workers: int = 1,
        deadline_seconds: float = 5.0,
        memory_bytes: int = 1 << 30,
        recycle_after: int = 500,
    ) -> None:
        self.task, self.rewards = task, list(rewards)
        self.inline = task.inline and all(reward.inline for reward in rewards)
        self.recycle_after = recycle_after
        self.counts = Counter(samples=0, timeouts=0, crashes=0, errors=0, unscored=0)
        self._setup = {
            "task": describe(task),
            "rewards": [describe(reward) for reward in rewards],
            "memory_bytes": memory_bytes,
            "deadline_seconds": deadline_seconds,
        }
        self._workers = [] if self.inline else [Worker(self._setup) for _ in range(max(1, workers))]

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the children."""
        while self._workers:
            self._workers.pop().kill()

    def score(self, rows: Sequence[Row], completions: Sequence[str]) -> list[Scored]:
        """Return one Scored for each pair, in order.

        Raises ConfigError where a part cannot be prepared in the child (its library is missing), RunFailed where
        children do not come up at all.
        """
        pairs = list(zip(rows, completions, strict=True))
        if self.inline:
            scored = [score_sample(self.task, self.rewards, row, completion) for row, completion in pairs]
        else:
            scored = _Round(self, pairs).run()
            self._recycle()
        self._count(scored)
        return scored

    def _recycle(self) -> None:
        """Replace worn children now, so that the new ones import while the trainer computes."""
        for index, worker in enumerate(self._workers):
            if worker.served >= self.recycle_after:
                self.replace(index)

    def replace(self, index: int) -> None:
        """Kill child `index` and start another in its place."""
        self._workers[index].kill()
        self._workers[index] = Worker(self._setup)

    def _count(self, scored: Sequence[Scored]) -> None:
        self.counts["samples"] += len(scored)
        for sample in scored:
            if sample.reward is None:
                self.counts[COUNTED.get(sample.reason.partition(":")[0], "unscored")] += 1


class _Round:
    """One call of `score`: who grades what, until every sample has its answer."""

    def __init__(self, pool: RewardPool, pairs: list[tuple[Row, str]]) -> None:
        self.pool, self.workers = pool, pool._workers
        self.pairs = pairs
        self.todo = deque(range(len(pairs)))
        self.found: list[Scored | None] = [None] * len(pairs)
        self.left = len(pairs)
        self.hung = 0  # samples in a row that missed the deadline

    def run(self) -> list[Scored]:
        while self.left:
            self._hand_out()
            soonest = min(worker.deadline for worker in self.workers)
            readable, _, _ = select.select(self.workers, [], [], max(0.0, soonest - time.monotonic()))
            for index, worker in enumerate(list(self.workers)):
                if worker in readable:
                    self._listen(index, worker)
                elif time.monotonic() >= worker.deadline:
                    self._lose(index, worker, "timeout")
        return [scored for scored in self.found if scored is not None]

    def _hand_out(self) -> None:
        for index, worker in enumerate(self.workers):
            if not self.todo or not worker.ready or worker.inflight:
                continue
            if worker.served >= self.pool.recycle_after:
                self.pool.replace(index)
                continue
            numbers = self._batch()
            try:
                worker.give(numbers, [[asdict(self.pairs[number][0]), self.pairs[number][1]] for number in numbers])
            except Gone:  # it died while idle: no sample is to blame
                self._requeue(index, worker)

    def _batch(self) -> list[int]:
        """Take a fair share of what is left, bounded in samples and characters."""
        share = min(BATCH_SAMPLES, -(-len(self.todo) // len(self.workers)))
        numbers: list[int] = []
        characters = 0
        while self.todo and len(numbers) < share and characters < BATCH_CHARACTERS:
            numbers.append(self.todo.popleft())
            characters += len(self.pairs[numbers[-1]][1])
        return numbers

    def _listen(self, index: int, worker: Worker) -> None:
        try:
            messages = worker.answers()
        except Gone:
            self._lose(index, worker, "crash")
            return
        for message in messages:
            if not self._take(worker, message):
                self._requeue(index, worker)
                return

    def _take(self, worker: Worker, message: dict[str, Any]) -> bool:
        """Note one message; return False where it was the child's last."""
        if "failed" in message:
            raise ConfigError(message["failed"], message["field"] or "rewards")
        if "bye" in message:
            return False
        if "ready" in message:
            worker.ready = True
            return True
        worker.served += 1
        self.hung = 0
        self._note(worker.inflight.popleft(), Scored(**message))
        return True

    def _lose(self, index: int, worker: Worker, reason: str) -> None:
        if not worker.ready:
            raise RunFailed(
                "the process that grades completions ended before it was ready; run `python -m trainer.rewards.child` "
                "in the same environment to see why, or give it more memory"
            )
        if worker.inflight:
            self._note(worker.inflight.popleft(), Scored(None, reason=reason))
            self.hung = self.hung + 1 if reason == "timeout" else 0
        self._requeue(index, worker)
        if self.hung >= HANGS:  # a reward that always hangs must not hold a step up for hours
            while self.todo:
                self._note(self.todo.popleft(), Scored(None, reason=NOT_TRIED))

    def _requeue(self, index: int, worker: Worker) -> None:
        self.todo.extendleft(reversed(worker.inflight))
        self.pool.replace(index)

    def _note(self, number: int, scored: Scored) -> None:
        self.found[number] = scored
        self.left -= 1
