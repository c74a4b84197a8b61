"""Evaluate any objective on recorded numbers: no model, no GPU, float64. Golden tests and the what-if view use this.

`trainer.objectives.evaluate(objective, batch)` in Python, `python -m trainer evaluate-objective --objective o.json
--batch b.json` in a shell. Arrays of tokens are [S][T] with `response_mask` (ragged rows need none) or flat [N] with
`sequence`; docs/objectives.md lists all names.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trainer.batch import TokenBatch
from trainer.errors import ConfigError
from trainer.lazy import torch
from trainer.objectives.base import Observation, Step
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.layout import Layout, number
from trainer.objectives.objective import Objective
from trainer.statistics import STATISTICS, StatisticInfo

if TYPE_CHECKING:
    from torch import Tensor

ALIASES = {
    **dict.fromkeys(("log_prob", "log_probs", "logprobs"), "logprob"),
    **dict.fromkeys(("old_log_prob", "old_log_probs", "old_logprobs"), "old_logprob"),
    **dict.fromkeys(("ref_log_prob", "ref_log_probs", "ref_logprobs"), "ref_logprob"),
    **dict.fromkeys(("engine_log_prob", "rollout_log_prob", "rollout_log_probs"), "engine_logprob"),
    **dict.fromkeys(("entropys", "token_entropy"), "entropy"),
    **dict.fromkeys(("old_entropys",), "old_entropy"),
    **dict.fromkeys(("advantages",), "advantage"),
    **dict.fromkeys(("mask",), "response_mask"),
    **dict.fromkeys(("rewards", "scores"), "reward"),
    **dict.fromkeys(("token_level_scores",), "token_level_rewards"),
    **dict.fromkeys(("index", "uid", "groups", "group_index"), "group"),
    **dict.fromkeys(("sequence_advantages",), "sequence_advantage"),
    **dict.fromkeys(("lengths",), "length"),
    **dict.fromkeys(("entropies",), "history"),
}
TOKEN = ("logprob", "old_logprob", "ref_logprob", "engine_logprob", "entropy", "old_entropy", "advantage")
MOMENTS = ("sum_p2", "sum_p2_logp")
RARE_TOKEN = tuple(name for name, info in STATISTICS.items() if not info.core and info.domain == "token")
RARE = {name: info for name, info in STATISTICS.items() if not info.core}
FLAGS = ("valid", "truncated", "auxiliary")
SCALARS = ("step", "total_steps", "minibatch", "seed", "max_completion_tokens", "vocabulary")
OTHER = ("response_mask", "token_level_rewards", "reward", "group", "length", "sequence", "knobs", "history")
KNOWN = {*TOKEN, *MOMENTS, *RARE, *FLAGS, *SCALARS, *OTHER, "current_entropy", "sequence_advantage"}


def evaluate(objective: dict[str, Any] | ObjectiveConfig | str, batch: dict[str, Any]) -> dict[str, Any]:
    """Return loss, gradients, advantage, mask, weight, metrics and knobs of an objective on one recorded step.

    Token results have the shape of the input, 0 at padding; `reward` is what the shapers left of it, and `grad_extra`
    holds the gradients with respect to rarer differentiable statistics. `history` (numbers, or objects with entropy,
    entropy_sampled, reward, kl, metrics) steps the controllers first; `knobs` are the values in force after it, and
    `course` those after each entry. Raises ConfigError naming the field that is wrong.
    """
    machine = Objective(_config(objective))
    batch, ignored = _renamed(batch)
    step = _step(batch)
    knobs, course = _history(machine, batch, step)
    step.knobs = knobs
    result = {"knobs": knobs, "course": course, "target": machine.target(step.step, step.total_steps, knobs)}
    return {**_numbers(machine, batch, step), **result, "metrics": step.metrics, "ignored": ignored}


def _config(objective: dict[str, Any] | ObjectiveConfig | str) -> ObjectiveConfig:
    from trainer.config import errors_of  # here: trainer.config imports this package

    if isinstance(objective, ObjectiveConfig):
        return objective
    try:
        return ObjectiveConfig.model_validate({"preset": objective} if isinstance(objective, str) else objective)
    except ValidationError as error:
        field, message = next(iter(errors_of(error).items()))
        raise ConfigError(f"{field or 'objective'}: {message}", field) from error


def _renamed(batch: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the batch under TokenBatch's names, without nulls, and the keys that mean nothing here."""
    if not isinstance(batch, dict):
        raise ConfigError("the batch must be a JSON object of arrays", "batch")
    named = {ALIASES.get(key, key): value for key, value in batch.items() if value is not None}
    ignored = sorted(key for key in named if key not in KNOWN)
    return {key: value for key, value in named.items() if key in KNOWN}, ignored


def _step(batch: dict[str, Any]) -> Step:
    step = Step()
    for name in SCALARS:
        setattr(step, name, int(number(batch.get(name, 0), name)))
    return step


def _history(machine: Objective, batch: dict[str, Any], step: Step) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Step the controllers through the recorded history; return the knobs in force and those after each entry."""
    knobs = {name: knob.value for name, knob in machine.knobs().items()}
    knobs |= {name: number(value, f"knobs.{name}") for name, value in batch.get("knobs", {}).items()}
    step.memory, course = machine.start(), []
    history = batch.get("history", [])
    for index, entry in enumerate(history):
        seen = entry if isinstance(entry, dict) else {"entropy": entry}
        entropy = number(seen.get("entropy"), "history.entropy")
        observation = Observation(
            step=int(seen.get("step", index)),
            total_steps=step.total_steps or len(history),
            entropy=entropy,
            entropy_sampled=number(seen.get("entropy_sampled", entropy), "history.entropy_sampled"),
            reward=number(seen.get("reward", 0.0), "history.reward"),
            kl=number(seen.get("kl", 0.0), "history.kl"),
            metrics={name: number(value, f"history.{name}") for name, value in seen.get("metrics", {}).items()},
        )
        step.memory, changed = machine.control(step.memory, observation, knobs)
        knobs = {**knobs, **changed}
        course.append(knobs)
    return knobs, course


def _numbers(machine: Objective, batch: dict[str, Any], step: Step) -> dict[str, Any]:
    """Return what `prepare` and `apply` make of the recorded tokens, in the caller's shape."""
    example: list[Any] = next(
        (
            batch[name]
            for name in (*TOKEN, *MOMENTS, *RARE_TOKEN, "response_mask", "token_level_rewards")
            if name in batch
        ),
        [],
    )
    layout = Layout.of(example, batch.get("response_mask"), batch.get("sequence"))
    tokens = token_batch(batch, layout)
    prepared = machine.prepare(tokens, step)
    outcome = machine.apply(prepared, step)
    grad_entropy = outcome.grad_entropy if outcome.grad_entropy is not None else torch.zeros_like(outcome.weight)
    arrays = {
        "grad_logprob": outcome.grad_logprob,
        "grad_entropy": grad_entropy,
        "advantage": outcome.advantage,
        "mask": outcome.mask,
        "weight": outcome.weight,
    }
    extra = {
        name: layout.spread(value.tolist()) if RARE[name].domain == "token" else value.tolist()
        for name, value in outcome.grad_extra.items()
    }
    spread = {name: layout.spread(value.tolist()) for name, value in arrays.items()}
    return {"loss": float(outcome.loss), **spread, "reward": prepared.reward.tolist(), "grad_extra": extra}


def token_batch(batch: dict[str, Any], layout: Layout) -> TokenBatch:
    """Return the recorded tokens as a float64 TokenBatch.

    Log-probs that are not given are 0 (only differences matter); where neither rewards nor advantages are given every
    token has advantage 1; a null reward marks an invalid completion; without `group` each completion is its own.
    """
    count = len(layout.cells)
    tensors = {name: _doubles(layout.flatten(name, batch[name])) for name in (*TOKEN, *MOMENTS) if name in batch}
    tensors.setdefault("logprob", torch.zeros(count, dtype=torch.float64))
    if "current_entropy" in batch:
        level = number(batch["current_entropy"], "current_entropy")
        tensors.setdefault("old_entropy", torch.full((count,), level, dtype=torch.float64))
    if "old_entropy" in tensors:
        tensors.setdefault("entropy", tensors["old_entropy"])
    if "sequence_advantage" in batch and "advantage" not in batch:
        values = [number(item, "sequence_advantage") for item in _sequence_list(batch, "sequence_advantage", layout)]
        tensors["advantage"] = _doubles(values)[torch.tensor(layout.sequence, dtype=torch.long)]
    if not {"advantage", "sequence_advantage", "reward", "token_level_rewards"} & batch.keys():
        tensors["advantage"] = torch.ones(count, dtype=torch.float64)
    flags = {
        name: torch.tensor(_sequence_list(batch, name, layout), dtype=torch.bool) for name in FLAGS if name in batch
    }
    length = _sequence_list(batch, "length", layout) if "length" in batch else layout.lengths()
    return TokenBatch(
        **tensors,
        **flags,
        sequence=torch.tensor(layout.sequence, dtype=torch.long),
        position=torch.tensor(layout.position, dtype=torch.long),
        group=torch.tensor(_groups(batch, layout), dtype=torch.long),
        reward=_rewards(batch, layout, tensors.get("advantage")),
        length=torch.tensor([int(number(item, "length")) for item in length], dtype=torch.long),
        extra={name: _rare(batch, info, layout) for name, info in RARE.items() if name in batch},
    )


def _rare(batch: dict[str, Any], info: StatisticInfo, layout: Layout) -> Tensor:
    """Return a statistic of the table as [N], [S], or [S, E] where it is a vector for each completion."""
    if info.domain == "token":
        return _doubles(layout.flatten(info.name, batch[info.name]))
    values = _sequence_list(batch, info.name, layout)
    if not info.width:
        return _doubles([number(item, info.name) for item in values])
    if len({len(item) if isinstance(item, list) else -1 for item in values}) > 1:
        raise ConfigError(f"{info.name} needs vectors of one length, one for each completion", info.name)
    return _doubles([[number(entry, info.name) for entry in item] for item in values])


def _rewards(batch: dict[str, Any], layout: Layout, advantage: Tensor | None) -> Tensor:
    """Return the reward of each completion, [S] (NaN for null); the mean advantage stands in where none is given."""
    if "reward" in batch:
        values = _sequence_list(batch, "reward", layout)
        return _doubles([math.nan if item is None else number(item, "reward") for item in values])
    if "token_level_rewards" in batch:
        name, rows = "token_level_rewards", batch["token_level_rewards"]
        if not layout.nested:
            raise ConfigError(f"{name} needs rows; give reward with one number a completion", name)
        return _doubles([math.fsum(number(item, name) for item in row) for row in rows])
    owner, total = torch.tensor(layout.sequence, dtype=torch.long), torch.zeros(layout.sequences, dtype=torch.float64)
    assert advantage is not None
    return total.index_add(0, owner, advantage) / _doubles(layout.lengths()).clamp(min=1)


def _doubles(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _groups(batch: dict[str, Any], layout: Layout) -> list[int]:
    names = _sequence_list(batch, "group", layout) if "group" in batch else list(range(layout.sequences))
    order = {name: index for index, name in enumerate(dict.fromkeys(map(str, names)))}
    return [order[str(name)] for name in names]


def _sequence_list(batch: dict[str, Any], name: str, layout: Layout) -> list[Any]:
    values = batch[name]
    if not isinstance(values, list) or len(values) != layout.sequences:
        raise ConfigError(f"{name} needs one entry for each of {layout.sequences} completions", name)
    return values


def main(argv: list[str] | None = None) -> int:
    """Run `evaluate-objective`: read two JSON files, write the result to a file or standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer evaluate-objective", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--objective", required=True, help="JSON file with {preset, parts}, or the name of a preset")
    parser.add_argument("--batch", required=True, help="JSON file with the recorded arrays")
    parser.add_argument("--out", help="file to write the result to; standard output without it")
    options = parser.parse_args(argv)
    try:
        named = Path(options.objective)
        objective = _read(named) if named.suffix == ".json" or named.exists() else options.objective
        text = json.dumps(evaluate(objective, _read(Path(options.batch))), indent=1)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out:
        Path(options.out).write_text(text + "\n", "utf-8")
    else:
        print(text)
    return 0


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}", str(path)) from error


class _Callable(ModuleType):
    """Lets `trainer.objectives.evaluate` be at once this module and the function that people call by that name."""

    def __call__(self, objective: dict[str, Any] | ObjectiveConfig | str, batch: dict[str, Any]) -> dict[str, Any]:
        return evaluate(objective, batch)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
