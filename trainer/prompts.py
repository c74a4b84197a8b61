"""Prompts: a task's rows as token ids, and which of them belong to which step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.tasks import Row, Task


def encode(tokenizer: Any, task: Task, rows: Sequence[Row]) -> list[tuple[int, ...]]:
    """Return the token ids of each row's prompt, through the chat template where the task wants it and there is one."""
    if task.chat and tokenizer.chat_template:
        return [tuple(_chat(tokenizer, task.messages(row))) for row in rows]
    return [tuple(ids) for ids in tokenizer([row.prompt for row in rows])["input_ids"]] if rows else []


def _chat(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]


class Prompts:
    """The training prompts in an order that the seed and the step alone decide, and the held-out ones."""

    def __init__(self, config: RunConfig, tokenizer: Any, context: int | None) -> None:
        """Read and encode all rows; raises ConfigError for an empty split, a long prompt or a short context."""
        self.task: Task = config.task
        self.seed, self.per_step = config.seed, config.sampling.prompts_per_step
        self.train = list(self.task.rows("train", config.seed))
        self.held_out = list(self.task.rows("held_out", config.seed))[: config.evaluation.prompts]
        if not self.train:
            raise ConfigError("task: there is no training prompt; choose a data set with at least one row", "task")
        self.train_ids = encode(tokenizer, config.task, self.train)
        self.held_out_ids = encode(tokenizer, config.task, self.held_out)
        self.special_ids: list[int] = list(tokenizer.all_special_ids)
        self._check(config, context)

    def _check(self, config: RunConfig, context: int | None) -> None:
        for row, ids in zip(self.train + self.held_out, self.train_ids + self.held_out_ids, strict=True):
            if not 0 < len(ids) <= config.sampling.max_prompt_tokens:
                field = "sampling.max_prompt_tokens"
                raise ConfigError(
                    f"{field}: the prompt of row {row.key!r} has {len(ids)} tokens, the limit is "
                    f"{config.sampling.max_prompt_tokens}; raise the limit or drop the row",
                    field,
                )
        longest = max(len(ids) for ids in self.train_ids + self.held_out_ids)
        if context and longest + config.sampling.max_completion_tokens > context:
            field = "sampling.max_completion_tokens"
            raise ConfigError(
                f"{field}: the longest prompt has {longest} tokens and the model takes {context}; "
                f"lower the limit to {max(1, context - longest)} or less",
                field,
            )

    def of_step(self, step: int, wave: int = 0) -> list[int]:
        """Return the rows of a step, counted from 1: each epoch is another permutation of all rows, none is skipped.

        Later waves of a step that asks for further prompts are drawn at random, so that no step moves another's.
        """
        if wave:
            chance = random.Random(f"wave {self.seed} {step} {wave}")
            return [chance.randrange(len(self.train)) for _ in range(self.per_step)]
        start = (step - 1) * self.per_step
        return [self._row(start + offset) for offset in range(self.per_step)]

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.train))
        return self._permutation(epoch)[place]

    def _permutation(self, epoch: int) -> list[int]:
        known: dict[int, list[int]] = self.__dict__.setdefault("_known", {})
        if epoch not in known:
            order = list(range(len(self.train)))
            random.Random(f"order {self.seed} {epoch}").shuffle(order)
            for old in [other for other in known if other < epoch - 1]:
                del known[old]
            known[epoch] = order
        return known[epoch]
