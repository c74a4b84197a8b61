"""The config a new-run page starts with, by its URL: ?preset=, ?model=, ?dataset=."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trainer.config import RunConfig
from trainer.objectives import PRESETS
from trainer.rewards import REWARDS
from webapp.catalog.models import Dataset


def starting_config(query: Mapping[str, str]) -> RunConfig:
    """Return the defaults with what the URL names; a name that is not known changes nothing."""
    values: dict[str, Any] = {}
    if (preset := query.get("preset", "")) in PRESETS:
        values["objective"] = {"preset": preset}
    if model := query.get("model", ""):
        values["model"] = {"source": model[:500]}
    if dataset := _dataset(query.get("dataset", "")):
        values |= dataset_values(dataset)
    try:
        return RunConfig.model_validate(values)
    except ValidationError:
        return RunConfig()


def _dataset(number: str) -> Dataset | None:
    return Dataset.objects.filter(pk=int(number)).first() if number.isdecimal() and len(number) < 10 else None


def dataset_values(dataset: Dataset) -> dict[str, Any]:
    """Return task, reward and lengths for training on an uploaded table; a character is a token at most."""
    task = {
        "type": "dataset",
        "path": str(dataset.file),
        "prompt_column": dataset.prompt_column,
        "answer_column": dataset.answer_column,
    }
    check = dataset.stats.get("checks", {}).get(dataset.answer_column, "")
    values: dict[str, Any] = {"task": task, "rewards": [{"type": check if check in REWARDS else "task"}]}
    if longest := dataset.longest(dataset.prompt_column):
        values["sampling"] = {"max_prompt_tokens": -(-(longest + 64) // 64) * 64, "max_completion_tokens": 256}
    return values
