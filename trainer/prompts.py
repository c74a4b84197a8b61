"""Prompts: a task's rows as token ids, and which of them belong to which step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.objectives.stages import Prompting
from trainer.tasks import Row, Task
from trainer.template import PLAIN, Template

LONGEST = 16  # prompts that are counted in every template before a run starts


@dataclass(frozen=True)
class Asked:
    """A row as it is put to the model: its prompt's words, their tokens, and the name of its template."""

    row: Row
    ids: tuple[int, ...]
    template: str = ""


def encode(tokenizer: Any, task: Task, rows: Sequence[Row], template: Template = PLAIN) -> list[tuple[int, ...]]:
    """Return the token ids of each row's prompt, through the chat template where the task wants it and there is one."""
    if task.chat and tokenizer.chat_template:
        turns = [template.messages(task.messages(row)) for row in rows]
        opening = tokenizer(template.opening, add_special_tokens=False)["input_ids"] if template.opening else []
        return [(*_chat(tokenizer, messages), *opening) for messages in turns]
    return (
        [tuple(ids) for ids in tokenizer([template.text_of(row.prompt) for row in rows])["input_ids"]] if rows else []
    )


def templates(config: RunConfig) -> dict[str, Template]:
    """Return the wordings that prompts are drawn in, by name; none where they are asked as the task words them."""
    found = (part.templates() for part in config.objective.parts if isinstance(part, Prompting))
    return next(found, {})


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
        self.tokenizer, self.templates = tokenizer, templates(config)
        self.train_ids = encode(tokenizer, config.task, self.train)
        self.held_out_ids = encode(tokenizer, config.task, self.held_out)
        self.special_ids: list[int] = list(tokenizer.all_special_ids)
        completion, most = config.sampling.max_completion_tokens, config.sampling.max_prompt_tokens
        self.room = min(most, context - completion) if context else most  # tokens of a prompt
        self._check(config, context)
        self._check_templates()

    def _check(self, config: RunConfig, context: int | None) -> None:
        rows = list(zip(self.train + self.held_out, self.train_ids + self.held_out_ids, strict=True))
        if empty := [row.key for row, ids in rows if not ids]:
            raise ConfigError(f"task: the prompt of row {empty[0]!r} has no token; drop the row", "task")
        longest, most = max(rows, key=lambda pair: len(pair[1])), config.sampling.max_prompt_tokens
        length = len(longest[1])
        if length > most:
            field = "sampling.max_prompt_tokens"
            raise ConfigError(
                f"{field}: the prompt of row {longest[0].key!r} has {length} tokens, the limit is {most}; raise the "
                f"limit to {length} or drop the rows that are longer",
                field,
            )
        if context and length + config.sampling.max_completion_tokens > context:
            field = "sampling.max_completion_tokens"
            raise ConfigError(
                f"{field}: the longest prompt has {length} tokens and the model takes {context}; "
                f"lower the limit to {max(1, context - length)} or less",
                field,
            )

    def _check_templates(self) -> None:
        """Raise ConfigError where a template makes one of the longest prompts too long."""
        order = sorted(range(len(self.train)), key=lambda row: -len(self.train_ids[row]))[:LONGEST]
        rows = [self.train[row] for row in order]
        for name, template in self.templates.items():
            longest = max(map(len, encode(self.tokenizer, self.task, rows, template)))
            if longest > self.room:
                field = "sampling.max_prompt_tokens"
                raise ConfigError(
                    f"{field}: in the template {name!r} the longest prompt has {longest} tokens and there is room for "
                    f"{self.room}; raise the limit, lower sampling.max_completion_tokens or leave the template out",
                    field,
                )

    def asked(self, step: int, group: int, row: int) -> Asked:
        """Return a row as it is put to the model as a group of a step: the wording follows from the seed and these."""
        if not self.templates:
            return Asked(self.train[row], self.train_ids[row])
        name = random.Random(f"template {self.seed} {step} {group}").choice(list(self.templates))
        template, plain = self.templates[name], self.train[row]
        (ids,) = encode(self.tokenizer, self.task, [plain], template)
        if len(ids) > self.room:
            name, template, ids = "plain", PLAIN, self.train_ids[row]
        extra = {**plain.extra, "form": template.form}
        return Asked(replace(plain, prompt=template.text_of(plain.prompt), extra=extra), ids, name)

    def of_step(self, step: int, wave: int = 0) -> list[int]:
        """Return the rows of a step, counted from 1: each epoch is another permutation of all rows, none is skipped.

        Later waves of a step that asks for further prompts are drawn at random, so that no step moves another's; none
        comes twice in a step before all have come.
        """
        if not wave:
            start = (step - 1) * self.per_step
            return [self._row(start + offset) for offset in range(self.per_step)]
        rows, seen = list[int](), set(self.of_step(step))
        for number in range(1, wave + 1):
            rows = self._further(random.Random(f"wave {self.seed} {step} {number}"), seen)
        return rows

    def _further(self, chance: random.Random, seen: set[int]) -> list[int]:
        """Return further rows of a step and add them to those seen in it."""
        rows: list[int] = []
        while len(rows) < self.per_step:
            if len(seen) == len(self.train):
                seen.clear()
            row = chance.randrange(len(self.train))
            if row not in seen:
                seen.add(row)
                rows.append(row)
        return rows

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
