"""Completion: one generated and graded answer of a step, as everything behind the rollouts reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.rectangles import Trajectory
from trainer.rewards.scoring import Scored
from trainer.tasks import Row

UNSCORED = Scored(None)
BOUNDS = ("entropy_low", "entropy_high")  # among `engine_moments`, where sampling saw only the likeliest tokens


@dataclass
class Completion:
    """One completion of a step: `index` is its place in the step's order, over all processes.

    `engine_...` are lists over all tokens of the completion. Where it forks off another, `parent` is that one's index
    in the step, if it is part of it, and `fork_at` how many tokens they share. `template` names the wording of its
    prompt where there are several. One that does not `learn` gives no gradient.
    """

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
    parent: int | None = None
    fork_at: int | None = None
    version: int = 0
    template: str = ""
    learns: bool = True

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
