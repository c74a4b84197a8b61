"""Layout: where each token of a flat batch lies in the caller's JSON arrays, there and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trainer.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """The tokens of S completions in arrays [S][T], or flat [N] where `nested` is False."""

    nested: bool
    widths: list[int]  # columns of each row; one row of N where flat
    cells: list[tuple[int, int]]  # (row, column) of each token, in order
    sequence: list[int]  # completion of each token
    position: list[int]  # place of each token in its completion
    sequences: int

    @classmethod
    def of(cls, example: list[Any], mask: list[Any] | None, sequence: list[int] | None) -> Layout:
        """Read the layout off one token array; a mask takes cells away, `sequence` divides a flat array."""
        nested = bool(example) and isinstance(example[0], list)
        if nested:
            widths = [len(row) for row in example]
            cells = [(row, column) for row, width in enumerate(widths) for column in range(width)]
            owner = [row for row, _ in cells]
        else:
            widths, cells = [len(example)], [(0, column) for column in range(len(example))]
            owner = [0] * len(example) if sequence is None else [int(item) for item in sequence]
            if len(owner) != len(example):
                raise ConfigError(f"sequence has {len(owner)} entries for {len(example)} tokens", "sequence")
            if any(item < 0 for item in owner) or owner != sorted(owner):
                raise ConfigError("sequence must count completions upwards from 0, tokens of one together", "sequence")
        total = len(widths) if nested else max(owner, default=-1) + 1
        if mask is not None:
            rows = _rows(mask, nested, widths, "response_mask")
            kept = [index for index, (row, column) in enumerate(cells) if float(rows[row][column]) > 0]
            cells, owner = [cells[index] for index in kept], [owner[index] for index in kept]
        seen: dict[int, int] = {}
        position = []
        for item in owner:
            position.append(seen.get(item, 0))
            seen[item] = position[-1] + 1
        return cls(nested, widths, cells, owner, position, total)

    def flatten(self, name: str, values: Any) -> list[float]:
        """Return the values at the tokens, flat; raise ConfigError where the shape differs or a value is no number."""
        rows = _rows(values, self.nested, self.widths, name)
        return [number(rows[row][column], name) for row, column in self.cells]

    def spread(self, flat: list[float]) -> list[Any]:
        """Return flat token values in the caller's shape, 0 at padding."""
        rows = [[0.0] * width for width in self.widths]
        for (row, column), value in zip(self.cells, flat, strict=True):
            rows[row][column] = value
        return rows if self.nested else rows[0]

    def lengths(self) -> list[int]:
        """Return the tokens of each completion."""
        counts = [0] * self.sequences
        for item in self.sequence:
            counts[item] += 1
        return counts


def number(value: Any, name: str) -> float:
    """Return a JSON value as a finite number; a null log-prob of the engine is NaN, unknown."""
    if value is None and name == "engine_logprob":
        return math.nan
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name} holds {value!r}; every entry must be a finite number", name)
    return float(value)


def _rows(values: Any, nested: bool, widths: list[int], name: str) -> list[list[Any]]:
    if not isinstance(values, list):
        raise ConfigError(f"{name} is not an array", name)
    rows = values if nested else [values]
    if [len(row) if isinstance(row, list) else -1 for row in rows] != widths:
        raise ConfigError(f"{name} does not have the shape of the other token arrays", name)
    return rows
