"""What several runs have in common and where they differ: settings, figures, prompts they both answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from webapp.runs.configform.shape import as_text
from webapp.runs.data import EVALUATION, rollout_index
from webapp.runs.models import Run

MAX_RUNS = 8
MAX_MEMBERS = 24  # of a sweep; its seeds share a colour
MAX_PANES = 8
COLOURS = 8
MAX_FILES = 120  # rollout files looked at for each run
MAX_PROMPTS = 400
MISSING = "–"
FIRST = ("reward/mean", "entropy/mean", "evaluation/", "length/mean")


@dataclass(frozen=True)
class Difference:
    """One setting over the runs, in their order."""

    key: str
    values: list[str]
    differs: bool


def colours(runs: Sequence[Run]) -> dict[str, int]:
    """Return {run id: colour 1..8}, decided by the id alone unless two runs of the set would share one."""
    taken: dict[str, int] = {}
    for run_id in sorted(run.pk for run in runs):
        wanted = sum(ord(letter) * (place + 3) for place, letter in enumerate(run_id)) % COLOURS
        free = next(shift for shift in range(COLOURS) if (wanted + shift) % COLOURS + 1 not in taken.values())
        taken[run_id] = (wanted + free) % COLOURS + 1
    return taken


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Return every setting of the runs' configs by dotted key, in the order of the first that has it."""
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = []
    for key in keys:
        values = [settings.get(key, MISSING) for settings in flat]
        rows.append(Difference(key, values, len(set(values)) > 1))
    return rows


def flatten(value: Any, path: str = "") -> dict[str, str]:
    """Return {dotted key: text}; parts of a list are named by their type, so that order does not count."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "type" in item for item in value):
        seen: dict[str, int] = {}
        items = []
        for item in value:
            kind = str(item["type"])
            seen[kind] = seen.get(kind, 0) + 1
            name = kind if seen[kind] == 1 else f"{kind}_{seen[kind]}"
            items.append((name, {key: part for key, part in item.items() if key != "type"} or True))
    else:
        return {path: as_text(value)}
    found: dict[str, str] = {}
    for key, item in items:
        found |= flatten(item, f"{path}.{key}" if path else key)
    return found


def metrics(runs: Sequence[Run]) -> list[str]:
    """Return the names of the metrics any of the runs has, those people look at first in front."""
    names = {name for run in runs for name in run.summary}
    rank = {name: place for place, name in enumerate(FIRST)}

    def order(name: str) -> tuple[int, list[tuple[int, str]]]:
        # Numbers in names count as numbers: pass@2 comes before pass@16.
        pieces = [(int(piece) if piece.isdecimal() else -1, piece) for piece in re.split(r"(\d+)", name)]
        return min((rank[first] for first in FIRST if name.startswith(first)), default=99), pieces

    return sorted(names, key=order)


def summary(runs: Sequence[Run], names: Sequence[str]) -> list[tuple[str, list[float | None], int | None]]:
    """Return (metric, latest value of each run, index of the highest) for reward, entropy and evaluations."""
    rows = []
    for name in names:
        if name not in ("reward/mean", "entropy/mean", "length/mean") and not name.startswith(EVALUATION):
            continue
        values = [run.summary.get(name) for run in runs]
        known = [value for value in values if isinstance(value, int | float)]
        best = values.index(max(known)) if len(known) > 1 and len(set(known)) > 1 else None
        rows.append((name, values, best))
    return rows


def shared_prompts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return prompts that at least two of the runs answered: {key, prompt, steps: {run id: [steps]}}."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        recorded = rollout_index(run)
        # Evenly over the run where there are more files than we care to open.
        stride = max(1, -(-len(recorded) // MAX_FILES))
        for entry in recorded[::stride]:
            for key, prompt in _prompts(str(run.folder.rollout_file(entry["step"])), entry["version"]):
                shared = found.setdefault(key, {"key": key, "prompt": prompt, "steps": {}})
                shared["steps"].setdefault(run.pk, []).append(entry["step"])
    both = [shared for shared in found.values() if len(shared["steps"]) > 1]
    both.sort(key=lambda shared: (-len(shared["steps"]), -sum(map(len, shared["steps"].values())), shared["key"]))
    return both[:MAX_PROMPTS]


@lru_cache(maxsize=2048)
def _prompts(path: str, version: int) -> tuple[tuple[str, str], ...]:
    """Return the (row key, prompt) pairs of a rollout file, nothing where it is gone or broken."""
    try:
        table = pq.read_table(path, columns=["row_key", "prompt"])
    except (OSError, pa.ArrowException, KeyError):
        return ()
    pairs = zip(table.column("row_key").to_pylist(), table.column("prompt").to_pylist(), strict=True)
    return tuple(dict.fromkeys((key, prompt[:2000]) for key, prompt in pairs if key))
