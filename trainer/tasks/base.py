"""A task: a dataset, its prompt template and what a right answer is, together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trainer.part import Part


@dataclass(frozen=True)
class Row:
    """One problem: a stable key (held-out rows share none with training), the prompt, the reference answer."""

    key: str
    prompt: str
    answer: str
    extra: dict[str, Any] = field(default_factory=dict)


class Task(Part):
    """Problems to train on and held-out problems to evaluate on."""

    inline: ClassVar[bool] = False  # linear time on any text, evaluates nothing: may run in the trainer

    @property
    def chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template where it has one."""
        return False

    def messages(self, row: Row) -> list[dict[str, str]]:
        """Return the conversation that the chat template is applied to."""
        return row.extra.get("messages") or [{"role": "user", "content": row.prompt}]

    def check(self) -> None:
        """Raise ConfigError for what is plainly wrong, without reading all of the data or importing anything large."""

    def reference(self, row: Row) -> str:
        """Return a completion that is right, for trying the reward before a run."""
        return row.answer

    def prepare(self) -> None:
        """Import what `score` needs; called once in the child before its first sample, outside any deadline."""

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        """Return every row of `split` ("train" or "held_out") in a fixed order for this seed.

        Raises trainer.errors.ConfigError where the source cannot be read.
        """
        raise NotImplementedError

    def score(self, row: Row, completion: str) -> float | None:
        """Return the task's own reward in [0, 1]; None marks an invalid sample. Runs in a killable child process."""
        raise NotImplementedError

    def canonical(self, row: Row, completion: str) -> str | None:
        """Return the answer in a form in which equal answers are equal strings, or None where there is none."""
        return completion.strip() or None
