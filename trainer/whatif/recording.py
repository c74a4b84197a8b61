"""Recording: a rollout file as the TokenBatch that the trainer had, and what else an objective reads of its step."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from torch import Tensor

from trainer.batch import TokenBatch
from trainer.completion import Completion
from trainer.config import load
from trainer.errors import ConfigError
from trainer.events import RunFolder
from trainer.objectives import Objective, ObjectiveConfig, Step
from trainer.passes import ENTROPIES
from trainer.policy import Trajectory
from trainer.recorder import CURRENT, FLAG_AUXILIARY, FLAG_CONTEXT, FLAG_MASKED, METADATA, describe
from trainer.rewards.scoring import Scored
from trainer.statistics import STATISTICS, StatisticInfo
from trainer.tasks import Row
from trainer.text_statistics import COMPLETION_FACTS, TOKEN_TEXT, completion_facts, token_statistics

CORE = ("sum_p2", "sum_p2_logp", "ref_logprob")
UNREAD = ("prompt", "completion", "reward_parts", "segments", "template")


@dataclass(frozen=True)
class Recording:
    """N tokens of S recorded completions, float64 on the CPU, as the step began; context tokens are left out."""

    path: Path
    batch: TokenBatch
    current: dict[str, Tensor]  # [N] by statistic, as each token's own minibatch found it; empty for one minibatch
    weight: Tensor  # [N] what the run's objective did (trainer/recorder.py)
    entropy_weight: Tensor  # [N]
    kept: Tensor  # [N] bool: tokens the run's objective had not masked
    step: Step  # with the knobs in force
    minibatches: int
    prompts: int
    completions: int  # of the whole step, recorded or not; 0 where unknown
    objective: ObjectiveConfig | None  # the run's own; None where this version does not know it
    options: dict[str, Any] = field(default_factory=dict)  # that the recorded statistics were computed with
    described: bool = True  # False: an older file, whose knobs in force are not known
    bounded: bool = False  # entropies are the middle of an interval
    counts: Tensor | None = None  # [M] bool: which of all recorded tokens these are; None for all

    def spread(self, values: Tensor) -> Tensor:
        """Return [N] over all recorded tokens, [M], context 0."""
        return values if self.counts is None else values.new_zeros(len(self.counts)).masked_scatter(self.counts, values)

    @property
    def now(self) -> TokenBatch:
        """Return the batch with the policy as each token's own minibatch found it."""
        return moved(self.batch, self.current)

    def missing(self, objective: Objective) -> list[str]:
        """Return what the objective reads and this recording cannot give, in words; empty where all is there."""
        options = objective.options(self.step.knobs)
        found = [_absent(self, STATISTICS[name], options) for name in sorted(objective.needs)]
        found = [text for text in dict.fromkeys(found) if text]
        if self.batch.auxiliary is None and any(part.stage == "sampling" for part in objective.parts):
            found.append("completions drawn at another temperature")
        return found

    def supply(self, objective: Objective) -> TokenBatch:
        """Return the batch with all the objective reads; raises ConfigError naming what is missing.

        Auxiliary completions count only where the objective samples some itself.
        """
        if absent := self.missing(objective):
            raise ConfigError(f"not computable here: needs {', '.join(absent)}", "objective")
        batch, options = self.batch, objective.options(self.step.knobs)
        if batch.auxiliary is not None and not any(part.stage == "sampling" for part in objective.parts):
            batch = batch.replace(valid=batch.need("valid") & ~batch.auxiliary, auxiliary=None)
        tokens = [name for name in TOKEN_TEXT if name in objective.needs]
        facts = [name for name in COMPLETION_FACTS if name in objective.needs]
        extra = dict(batch.extra)
        if tokens:
            values = token_statistics(tokens, self._texts, options).double()
            extra |= dict(zip(tokens, values.unbind(1), strict=True))
        if facts:
            values = completion_facts(facts, self._texts, options).double()
            extra |= dict(zip(facts, values.unbind(1), strict=True))
        return batch.replace(extra={name: value for name, value in extra.items() if name in objective.needs})

    @cached_property
    def _texts(self) -> list[Completion]:
        return _completions(self.path, self.batch)


def moved(batch: TokenBatch, current: dict[str, Tensor]) -> TokenBatch:
    """Return a batch with other values of some statistics."""
    core = {name: value for name, value in current.items() if STATISTICS[name].core}
    extra = {name: value for name, value in current.items() if name not in core and name in batch.extra}
    return batch.replace(**core, extra={**batch.extra, **extra})


def _absent(recording: Recording, info: StatisticInfo, options: dict[str, Any]) -> str:
    """Return what is missing of a statistic, or ""."""
    batch, derived = recording.batch, (*TOKEN_TEXT, *COMPLETION_FACTS)
    if recording.bounded and info.name in ENTROPIES:
        return "exact entropies (those recorded are bounds)"
    if info.name in ("logprob", "entropy_grad", *derived):
        return ""
    if (getattr(batch, info.name) if info.core else batch.extra.get(info.name)) is None:
        return info.name
    if info.option and recording.options.get(info.option) != options.get(info.option):
        return f"{info.name} at {info.option} {options.get(info.option)}"
    return ""


def read(path: Path) -> Recording:
    """Read a rollout file; raises FileNotFoundError, and ConfigError for a file that is broken or lacks a column."""
    try:
        file = pq.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name not in UNREAD]
        table = file.read(columns=names)
    except pa.ArrowException as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from error
    try:
        return _recording(path, table)
    except KeyError as error:
        raise ConfigError(f"{path.name} has no column {error}; it was not written by the recorder") from error


def _recording(path: Path, table: pa.Table) -> Recording:
    length = torch.tensor(pc.list_value_length(table["token_ids"]).to_pylist(), dtype=torch.long)
    columns = {name: _tokens(table, name, int(length.sum())) for name in table.column_names if _is_list(table, name)}
    starts = length.cumsum(0) - length
    sequence = torch.repeat_interleave(torch.arange(len(length)), length)
    position = torch.arange(len(sequence)) - starts[sequence]
    flags = columns["flags"].long()
    facts, described = _facts(path, table)
    auxiliary = torch.zeros(len(length), dtype=torch.bool)
    auxiliary[sequence[(flags & FLAG_AUXILIARY) > 0]] = True
    counts = (flags & FLAG_CONTEXT) == 0
    if not bool(counts.all()):
        sequence, position, flags = sequence[counts], position[counts], flags[counts]
        columns = {name: values[counts] if len(values) == len(counts) else values for name, values in columns.items()}
    reward = torch.tensor(table["reward"].to_numpy(zero_copy_only=False)).double()
    batch = TokenBatch(
        logprob=columns["logprob"],
        sequence=sequence,
        position=position,
        group=torch.tensor(table["group"].to_pylist(), dtype=torch.long),
        reward=reward,
        length=length,
        entropy=columns["entropy"],
        old_logprob=columns["logprob"],
        old_entropy=columns["entropy"],
        engine_logprob=columns.get("engine_logprob"),
        **{name: columns[name] for name in CORE if name in columns},
        valid=torch.isfinite(reward),
        truncated=torch.tensor([reason == "length" for reason in table["finish_reason"].to_pylist()]),
        mask=_learning(table, sequence),
        auxiliary=auxiliary if bool(auxiliary.any()) else None,
        extra=_extra(table, columns),
    )
    return Recording(
        path=path,
        batch=batch,
        current={n.removeprefix(CURRENT): v for n, v in columns.items() if n.startswith(CURRENT)},
        weight=columns["weight"],
        entropy_weight=columns["entropy_weight"],
        kept=(flags & FLAG_MASKED) == 0,
        step=Step(**{name: facts[name] for name in ("step", "total_steps", "seed", "max_completion_tokens", "knobs")}),
        minibatches=facts["minibatches"],
        prompts=facts["prompts"],
        completions=facts["completions"],
        objective=_objective(facts["objective"]),
        options=facts["options"],
        described=described,
        bounded=facts.get("entropy_estimator") == "bounds",
        counts=None if bool(counts.all()) else counts,
    )


def _learning(table: pa.Table, sequence: Tensor) -> Tensor | None:
    """Return a mask without the tokens of completions that give no gradient, [N], or None where all do."""
    if "learns" not in table.column_names:
        return None
    learns = torch.tensor(table["learns"].to_pylist(), dtype=torch.float64)
    return None if bool(learns.all()) else learns[sequence]


def _is_list(table: pa.Table, name: str) -> bool:
    return pa.types.is_list(table.schema.field(name).type)


def _tokens(table: pa.Table, name: str, tokens: int) -> Tensor:
    """Return a list column flat, float64 [N], unknown values NaN; vectors of a completion keep their rows, [S, E]."""
    flat = pc.list_flatten(table[name]).cast(pa.float64()).to_numpy()
    values = torch.tensor(flat)
    if len(values) == tokens:
        return values
    if STATISTICS.get(name) and STATISTICS[name].width and len(values) % max(1, len(table)) == 0:
        return values.reshape(len(table), -1)
    raise ConfigError(f"the column {name} has {len(values)} values for {tokens} tokens; the file is broken")


def _extra(table: pa.Table, columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the rarer statistics that the file holds, [N] or [S]."""
    found = {}
    for name, info in STATISTICS.items():
        if info.core or name not in table.column_names or name in COMPLETION_FACTS:
            continue
        found[name] = columns[name] if name in columns else torch.tensor(table[name].to_numpy()).double()
    return found


def _facts(path: Path, table: pa.Table) -> tuple[dict[str, Any], bool]:
    """Return what the file says of its step, else what the run's config says, and which of the two it is."""
    said = (table.schema.metadata or {}).get(METADATA)
    if said is not None:
        return json.loads(said), True
    folder = RunFolder(path.parent.parent)
    if not folder.config.is_file():
        raise ConfigError(f"{path.name} does not say what its step was, and there is no {folder.config.name} beside it")
    config = load(folder.config)
    number = path.stem.rpartition("-")[2]
    settings = Step(
        step=int(number) if number.isdigit() else 0,
        total_steps=config.optimiser.steps,
        seed=config.seed,
        max_completion_tokens=config.sampling.max_completion_tokens,
    )
    return {**describe(config, settings), "minibatches": 1, "completions": 0}, False


def _objective(data: dict[str, Any]) -> ObjectiveConfig | None:
    try:
        return ObjectiveConfig.model_validate(data)
    except ValidationError:
        return None


def _completions(path: Path, batch: TokenBatch) -> list[Completion]:
    """Return the recorded completions with their texts, as far as statistics of texts look at them."""
    names = ["group", "sample", "row_key", "completion", "token_ids", "byte_offsets", "finish_reason", "right", "flags"]
    file = pq.ParquetFile(path)
    maybe = ("answer", "reward", "branch_parent", "branch_token")
    names += [name for name in maybe if name in file.schema_arrow.names]
    auxiliary = torch.zeros(batch.sequences, dtype=torch.bool) if batch.auxiliary is None else batch.auxiliary
    found = []
    for index, row in enumerate(file.read(columns=names).to_pylist()):
        right: dict[str, float | None] = {} if row["right"] is None else {"task": float(row["right"])}
        found.append(
            Completion(
                index=index,
                group=row["group"],
                sample=row["sample"],
                auxiliary=bool(auxiliary[index]),
                row=Row(row["row_key"] or "", "", ""),
                tokens=Trajectory((), tuple(row["token_ids"]), tuple(not flag & FLAG_CONTEXT for flag in row["flags"])),
                engine_logprob=[],
                finish_reason=row["finish_reason"],
                text=row["completion"],
                offsets=row["byte_offsets"],
                parent=row.get("branch_parent"),
                fork_at=row.get("branch_token"),
                scored=Scored(row["reward"], right, row.get("answer")),
            )
        )
    return found
