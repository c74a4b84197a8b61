"""What a run survives and what ends it: steps that cannot be taken, completions that cannot be graded."""

from __future__ import annotations

from collections import Counter

from trainer.errors import RunFailed
from trainer.stream import Silent
from trainer.update import Update

BAD_STEPS_ALLOWED = 2  # the third in a row ends the run
WORTH_SAYING = 0.02  # share of ungraded completions that is warned of in every step; less is said once


class Health:
    """Counts bad steps in a row; the third of a kind ends the run with a sentence that says what to do."""

    def __init__(self, stream: Silent) -> None:
        self.stream = stream
        self.nonfinite, self.blind, self.said = 0, 0, False

    def check(self, step: int, update: Update, ungraded: Counter[str], samples: int) -> None:
        """Warn of what went wrong in a step; raises RunFailed for the third bad step in a row."""
        self._numbers(step, update)
        self._grades(step, ungraded, samples)

    def _numbers(self, step: int, update: Update) -> None:
        if not update.problems:
            self.nonfinite = 0
            return
        self.nonfinite += 1
        why = "; ".join(dict.fromkeys(update.problems))
        self.stream.emit("warning", step, code="nonfinite", message=f"{why}; the weights stay as they were")
        if self.nonfinite > BAD_STEPS_ALLOWED:
            raise RunFailed(
                f"{self.nonfinite} steps in a row could not be taken ({why}); lower optimiser.learning_rate, or resume "
                "from an earlier checkpoint"
            )

    def _grades(self, step: int, ungraded: Counter[str], samples: int) -> None:
        count = ungraded.total()
        self.blind = self.blind + 1 if samples and count == samples else 0
        if not count:
            return
        why = ", ".join(f"{number} x {reason}" for reason, number in ungraded.most_common(3))
        if count > WORTH_SAYING * samples or not self.said:
            message = f"{count} of {samples} completions could not be graded ({why}); they count for nothing"
            self.stream.emit("warning", step, code="invalid", message=message)
            self.said = True
        if self.blind > BAD_STEPS_ALLOWED:
            raise RunFailed(
                f"rewards: no completion of {self.blind} steps in a row could be graded ({why}); try the reward with "
                "`python -m trainer check`, or choose another",
                "rewards",
            )
