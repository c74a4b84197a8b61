"""What a sweep varies: objectives × values of settings × seeds; and a member's place in it. As people type it, too."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

MAX_MEMBERS = 200
MAX_PARAMETERS = 8
MAX_SEED = 2**31 - 1
RANGE = re.compile(r"(\d{1,10})(?:\s*[-–]\s*(\d{1,10}))?")


class Parameter(BaseModel):
    """A setting and the texts it takes in turn; in its path a part of a list is named by its type."""

    model_config = ConfigDict(frozen=True)
    path: str
    values: tuple[str, ...]


class Axes(BaseModel):
    """Stored with the sweep: presets beside the objective of its config, seeds, settings with their values."""

    model_config = ConfigDict(frozen=True)
    presets: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    parameters: tuple[Parameter, ...] = ()


class Coordinates(BaseModel):
    """Stored with a member: its objective's key, its seed, and the settings that it has with their values."""

    model_config = ConfigDict(frozen=True)
    objective: str
    seed: int
    values: dict[str, str] = {}

    @property
    def cell(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What members that differ in their seed alone have in common."""
        return self.objective, tuple(self.values.items())


def read_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a list like `0-4, 7`, each once, in its order; raise ValueError with one sentence."""
    found: dict[int, None] = {}
    for item in _items(text):
        match = RANGE.fullmatch(item)
        if match is None:
            raise ValueError(f"“{item[:40]}” is no seed; write whole numbers and ranges, as in 0-4, 7.")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise ValueError(f"{item} runs backwards; write {last}-{first}.")
        if last > MAX_SEED:
            raise ValueError(f"{last} is too large for a seed; the largest is {MAX_SEED}.")
        if last - first >= MAX_MEMBERS:
            raise ValueError(f"{item} are {last - first + 1:,} seeds; a sweep holds at most {MAX_MEMBERS} runs.")
        found |= dict.fromkeys(range(first, last + 1))
    return tuple(found)


def write_seeds(seeds: tuple[int, ...]) -> str:
    """Return the seeds as `read_seeds` reads them; three or more in a row become a range."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(texts)


def read_values(text: str) -> tuple[str, ...]:
    """Return the values of a list like `1e-5, 3e-5`, each once, in its order."""
    return tuple(dict.fromkeys(_items(text)))


def _items(text: str) -> list[str]:
    return [item.strip() for item in re.split(r"[,;\n]", text) if item.strip()]


def short_names(paths: tuple[str, ...]) -> dict[str, str]:
    """Return the shortest ending of each path that tells it from the others: `learning_rate`, `ppo_clip.clip_low`."""
    names = {}
    for path in paths:
        pieces = path.split(".")
        endings = [".".join(pieces[-count:]) for count in range(1, len(pieces) + 1)]
        others = [other for other in paths if other != path]
        free = (end for end in endings if not any(f".{other}".endswith(f".{end}") for other in others))
        names[path] = next(free, path)
    return names
