"""What would stop a run, said before it starts: one sentence for each fault, naming the field and the fix.

`check(config, deep=False)` reads small files and imports no torch, so the web process may call it. `deep=True` also
reads all of the data, loads the tokenizer, counts the tokens of the longest prompts and tries the reward on some rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from trainer import models
from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.estimate import Estimate, estimate
from trainer.memory import LABELS, PHASES, available
from trainer.model_files import ModelInfo
from trainer.prompts import encode, templates
from trainer.rollout.vllm import forecast
from trainer.roots import home
from trainer.tasks import Row, Task
from trainer.template import PLAIN

TRIALS = 3
TRIED_ROWS = 24
LONGEST = 500
SHOWN = 500  # characters
ADVICE = 3  # changes named
MEMORY = "resources"  # the field of the warning that memory will not do: many settings take part
SPARE = 1.3  # a checkpoint is written beside the old one, and file systems want some air


class Problem(BaseModel):
    """One fault; an error stops the run, a warning does not."""

    field: str
    message: str
    severity: Literal["error", "warning"] = "error"


class RewardTrial(BaseModel):
    """One row's own answer put to the reward, and nothing put to it; a score is None where the sample is invalid."""

    key: str
    prompt: str
    answer: str
    score_of_answer: float | None
    score_of_empty: float | None
    parts: dict[str, float | None] = {}
    reason: str = ""


class Preflight(BaseModel):
    """Errors in `problems`, what merely deserves a look in `warnings`."""

    problems: list[Problem] = []
    warnings: list[Problem] = []
    trials: list[RewardTrial] = []
    estimate: Estimate | None = None

    @property
    def ok(self) -> bool:
        return not self.problems

    def add(self, field: str, message: str, *, warning: bool = False) -> None:
        found = Problem(field=field, message=message, severity="warning" if warning else "error")
        (self.warnings if warning else self.problems).append(found)

    def __str__(self) -> str:
        lines = [f"{found.severity}: {found.message}" for found in [*self.problems, *self.warnings]]
        lines += [
            f"trial: {trial.key}: {trial.answer!r} scores {trial.score_of_answer}, "
            f"nothing scores {trial.score_of_empty}"
            for trial in self.trials
        ]
        if self.estimate:
            figures = ((name, value) for name, value in self.estimate if not name.startswith("memory"))
            lines.append("estimate: " + ", ".join(f"{name} {value}" for name, value in figures))
            lines.append(f"memory: {_memory_of(self.estimate)}")
        return "\n".join([*lines, "ready to train" if self.ok else "not ready"])


def check(
    config: RunConfig, *, deep: bool = True, folder: Path | None = None, gpu_bytes: int | None = None
) -> Preflight:
    """Return what would stop or hurt this run; `folder` is where run folders lie ($ISENTROPE_HOME/runs or here).

    `gpu_bytes` is the memory of the smallest GPU it may get, where that is known.
    """
    report = Preflight()
    info = models.inspect(config.model.source)
    for problem in info.problems[:1]:
        report.add("model.source", f"model.source: {problem}")
    for note in info.notes:
        report.add("model.source", f"model.source: {note}", warning=True)
    _context(report, config, info)
    for field, message in forecast.problems(config, info, trains=deep):
        report.add(field, message)
    _remarks(report, config)
    if info.parameters:
        _costs(report, config, info, folder or _runs(), gpu_bytes)
    try:
        task: Task = config.task
        task.check()
        if deep:
            _data(report, config, info)
    except ConfigError as error:
        report.add(error.field or "task", str(error))
    return report


def _remarks(report: Preflight, config: RunConfig) -> None:
    for remark in (remark for part in config.objective.parts for remark in part.remarks()):
        report.add("objective.parts", f"objective.parts: {remark}", warning=True)
    surrogate = next((part for part in config.objective.parts if part.stage == "surrogate"), None)
    if config.sampling.staleness and getattr(surrogate, "correction", "") == "off":
        message = "nothing weighs completions for the update they are behind; set the surrogate's correction to token"
        report.add("sampling.staleness", f"sampling.staleness: {message}", warning=True)
    if not templates(config) and any(reward.type == "template_form" for reward in config.rewards):
        message = "template_form gives everything 1 where prompts have no templates; add the part prompt_augmentation"
        report.add("rewards", f"rewards: {message} or take the reward format", warning=True)


def _context(report: Preflight, config: RunConfig, info: ModelInfo) -> None:
    sampling, context = config.sampling, info.context
    if not context:
        return
    if sampling.max_completion_tokens >= context:
        field = "sampling.max_completion_tokens"
        report.add(field, f"{field}: the model takes {context} tokens in all; allow fewer than {context}")
    elif sampling.max_prompt_tokens + sampling.max_completion_tokens > context:
        field = "sampling.max_prompt_tokens"
        message = f"{sampling.max_prompt_tokens} + {sampling.max_completion_tokens} tokens exceed the model's {context}"
        room = context - sampling.max_completion_tokens
        report.add(field, f"{field}: {message}; prompts longer than {room} will be refused", warning=True)


def _costs(report: Preflight, config: RunConfig, info: ModelInfo, folder: Path, gpu_bytes: int | None) -> None:
    room = gpu_bytes if config.resources.gpus else available()
    cost = report.estimate = estimate(config, info, folder, room=room)
    free = cost.free_disk_bytes
    if free is not None and cost.checkpoint_bytes * SPARE > free:
        message = f"a checkpoint takes about {_size(cost.checkpoint_bytes)} and {_size(free)} are free in {folder}"
        report.add("checkpoint.keep", f"checkpoint.keep: {message}; free some space")
    elif free is not None and cost.disk_bytes > free:
        message = f"{config.checkpoint.keep} checkpoints take about {_size(cost.disk_bytes)}, {_size(free)} are free"
        report.add("checkpoint.keep", f"checkpoint.keep: {message}; keep fewer or free some space", warning=True)
    if cost.memory_lacking:
        report.add(MEMORY, f"{MEMORY}: {lacking(cost)}", warning=True)


def _data(report: Preflight, config: RunConfig, info: ModelInfo) -> None:
    """Look at the rows themselves; raise ConfigError where they cannot be had."""
    task: Task = config.task
    train, held_out = task.rows("train", config.seed), task.rows("held_out", config.seed)
    if not train:
        raise ConfigError("task: there is no training prompt; choose a data set with at least one row", "task")
    if len(train) < config.sampling.prompts_per_step:
        message = f"{len(train)} training prompts are fewer than one step takes; a step will repeat some"
        report.add("sampling.prompts_per_step", f"sampling.prompts_per_step: {message}", warning=True)
    if config.evaluation.every_steps and len(held_out) < config.evaluation.prompts:
        message = f"only {len(held_out)} prompts are held out; all of them will be measured"
        report.add("evaluation.prompts", f"evaluation.prompts: {message}", warning=True)
    there = info.path and not info.problems and (Path(info.path) / "config.json").is_file()
    if there and _known(report, info):
        _lengths(report, config, info, [*train, *held_out])
    _trials(report, config, train[:TRIED_ROWS])


def _known(report: Preflight, info: ModelInfo) -> bool:
    """Return whether the installed transformers can build the model, and say so where it cannot."""
    from transformers import AutoConfig, __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        kind = AutoConfig.from_pretrained(str(info.path), trust_remote_code=False).model_type
    except Exception:  # a type it has never heard of, or settings that contradict each other
        kind = ""
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return True
    message = f"transformers {__version__} has no causal language model for {info.architecture or 'its config.json'}"
    report.add("model.source", f"model.source: {message}; choose another model")
    return False


def _lengths(report: Preflight, config: RunConfig, info: ModelInfo, rows: Sequence[Row]) -> None:
    """Count the tokens of the prompts with most characters and of the first ones."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(info.path, trust_remote_code=False)
    except Exception as error:  # broken tokenizer files raise anything
        report.add("model.source", f"model.source: the tokenizer does not load ({_first_line(error)}); copy it again")
        return
    if info.vocabulary and len(tokenizer) > info.vocabulary:
        message = (
            f"the tokenizer has {len(tokenizer)} tokens and the model {info.vocabulary}; they do not belong together"
        )
        report.add("model.source", f"model.source: {message}")
    sample = [*sorted(rows, key=lambda row: len(row.prompt), reverse=True)[:LONGEST], *rows[:LONGEST]]
    wordings = {"": PLAIN} | templates(config)
    try:
        counts = {
            (name, place): len(ids)
            for name, template in wordings.items()
            for place, ids in enumerate(encode(tokenizer, config.task, sample, template))
        }
    except Exception as error:  # a chat template is a program of its author's
        report.add(
            "task.chat_template",
            f"task.chat_template: the model's template fails on these prompts ({_first_line(error)})",
        )
        return
    name, place = max(counts, key=counts.__getitem__)
    _compare(report, config, info, counts[name, place], sample[place], name)


def _compare(report: Preflight, config: RunConfig, info: ModelInfo, tokens: int, row: Row, template: str) -> None:
    sampling, shown = config.sampling, f"{row.prompt[:60]!r}{f', in the template {template}' if template else ''}"
    if tokens > sampling.max_prompt_tokens:
        field = "sampling.max_prompt_tokens"
        message = f"the prompt {row.key} ({shown}) has {tokens} tokens and {sampling.max_prompt_tokens} are allowed"
        report.add(field, f"{field}: {message}; raise the limit to {tokens} or shorten the prompt")
    if info.context and tokens + sampling.max_completion_tokens > info.context:
        field = "sampling.max_completion_tokens"
        message = f"the prompt {row.key} ({shown}) has {tokens} tokens and the model takes {info.context} in all"
        room = info.context - tokens
        fix = f"allow {room} or fewer" if room > 0 else "shorten the prompt or choose a model with a longer context"
        report.add(field, f"{field}: {message}; {fix}")


def _trials(report: Preflight, config: RunConfig, rows: Sequence[Row]) -> None:
    """Put each row's own answer and nothing to the reward, as the run would."""
    from trainer.rewards.pool import RewardPool

    task: Task = config.task
    plain = [task.reference(row) for row in rows]
    boxed = [f"\\boxed{{{answer}}}" for answer in plain]
    with RewardPool(task, config.rewards) as pool:
        scored = pool.score([*rows] * 3, [*plain, *boxed, *([""] * len(rows))])
    count, found = len(rows), []
    for index, row in enumerate(rows):
        own, wrapped, empty = scored[index], scored[count + index], scored[2 * count + index]
        best, text = (own, plain[index])
        if wrapped.reward is not None and (own.reward is None or wrapped.reward > own.reward):
            best, text = wrapped, boxed[index]
        found.append(
            RewardTrial(
                key=row.key, prompt=row.prompt[:SHOWN], answer=text[:SHOWN],
                score_of_answer=best.reward, score_of_empty=empty.reward, parts=best.parts, reason=best.reason,
            )
        )  # fmt: skip
    report.trials = found[:TRIALS]
    _judge(report, found)


def _judge(report: Preflight, trials: Sequence[RewardTrial]) -> None:
    invalid = [trial for trial in trials if trial.score_of_answer is None]
    if len(invalid) == len(trials):
        message = (
            f"no answer of the first {len(trials)} rows can be graded ({invalid[0].reason}: {invalid[0].answer[:60]!r})"
        )
        report.add("rewards", f"rewards: {message}; choose another reward or answer column")
        return
    if invalid:
        message = (
            f"{len(invalid)} of the first {len(trials)} answers cannot be graded, such as {invalid[0].answer[:60]!r}"
        )
        report.add("rewards", f"rewards: {message}; samples of such rows are left out", warning=True)
    if not any(_better(trial) for trial in trials):
        message = "the right answers of the first rows score no more than an empty completion"
        report.add("rewards", f"rewards: {message}; check reward and answer column", warning=True)


def _better(trial: RewardTrial) -> bool:
    return trial.score_of_answer is not None and trial.score_of_answer > (trial.score_of_empty or 0.0)


def _runs() -> Path:
    return home() / "runs" if os.environ.get("ISENTROPE_HOME") else Path.cwd()


def lacking(cost: Estimate) -> str:
    """Return what to say of a run whose memory will not do: what it takes, what there is, which settings to change."""
    assert cost.memory is not None
    where = "a GPU has" if cost.memory.device == "cuda" else "this machine has"
    text = f"training may take {_size(cost.memory.machine_bytes)} of memory and {where} {_size(cost.memory_room or 0)}"
    changes = [f"{change.text} ({_size(change.saved_bytes)} less)" for change in cost.memory_advice[:ADVICE]]
    return f"{text}; " + ("; ".join(changes) or "take a smaller model")


def _memory_of(cost: Estimate) -> str:
    """Return the predicted peak with its parts, largest first."""
    if cost.memory is None:
        return f"unknown: {cost.memory_unknown}"
    peak = cost.memory.peak
    parts = ", ".join(f"{LABELS[name].lower()} {_size(size)}" for name, size in peak.sorted())
    room = f"; {_size(cost.memory_room)} available" if cost.memory_room else ""
    return f"{_size(cost.memory.machine_bytes)} at most, while {PHASES[peak.name]} ({parts}){room}"


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{max(1, count >> 20)} MiB"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
