"""From one completion to its reward: the weighted sum of the parts, with everything odd turned into an invalid sample.

A sample is invalid (reward None) where a counted part is None or not finite. It is never a silent zero: a zero would
enter the group's mean and pull the policy away from an answer nobody graded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.rewards.base import Reward
from trainer.tasks.base import Row, Task


@dataclass(frozen=True)
class Scored:
    """A graded sample: the weighted sum or None, the unweighted parts, the answer in canonical form.

    `reason` says why the reward is None: "timeout", "crash", "error: ...", "no score" or "not finite".
    """

    reward: float | None
    parts: dict[str, float | None] = field(default_factory=dict)
    canonical: str | None = None
    reason: str = ""


def labels(rewards: Sequence[Reward]) -> list[str]:
    """Return one name for each part: its type, numbered from the second of the same type on (`regex`, `regex_2`)."""
    names: list[str] = []
    for reward in rewards:
        seen = sum(name.partition("_#")[0] == reward.type for name in names)
        names.append(f"{reward.type}_#{seen + 1}" if seen else reward.type)
    return [name.replace("_#", "_") for name in names]


def score_sample(task: Task, rewards: Sequence[Reward], row: Row, completion: str) -> Scored:
    """Return the graded sample; exceptions of a part make it invalid and name themselves in `reason`."""
    try:
        parts = _parts(task, rewards, row, completion)
        canonical = task.canonical(row, completion)
    except Exception as error:  # a reward's fault must not end the run; the sample is counted and left out
        return Scored(None, reason=f"error: {type(error).__name__}: {error}"[:500])
    counted = [(reward.weight, part) for reward, part in zip(rewards, parts, strict=True) if reward.weight]
    named = dict(zip(labels(rewards), (_finite(part) for part in parts), strict=True))
    if any(part is None for _, part in counted):
        return Scored(None, named, canonical, "no score")
    total = math.fsum(weight * part for weight, part in counted)  # type: ignore[operator]
    if not math.isfinite(total):
        return Scored(None, named, canonical, "not finite")
    return Scored(total, named, canonical)


def _parts(task: Task, rewards: Sequence[Reward], row: Row, completion: str) -> list[float | None]:
    parts: list[float | None] = [None] * len(rewards)
    for index, reward in enumerate(rewards):
        if not reward.gated:
            parts[index] = _number(reward.score(task, row, completion))
    if any(reward.gated for reward in rewards):
        right = _gate(task, rewards, parts, row, completion)
        for index, reward in enumerate(rewards):
            if reward.gated:
                parts[index] = _number(reward.score(task, row, completion)) if right else 0.0
    return parts


def _gate(task: Task, rewards: Sequence[Reward], parts: list[float | None], row: Row, completion: str) -> bool:
    """Return whether the ungated parts reward the completion; with no such part, the task's own check decides."""
    ungated = [
        reward.weight * (part or 0.0)
        for reward, part in zip(rewards, parts, strict=True)
        if reward.weight and not reward.gated
    ]
    if ungated:
        return sum(ungated) > 0
    return bool(task.score(row, completion))


def _number(score: float | None) -> float | None:
    return None if score is None else float(score)


def _finite(part: float | None) -> float | None:
    return part if part is not None and math.isfinite(part) else None
