"""Recorded numbers of reference implementations, each against `evaluate`.

A case is a function of a recording (tests/golden/<method>__<variant>.json) registered for its method; it reads the
hyper-parameters of the recording, so every variant of a method runs through the same lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parents[3] / "golden"


@dataclass(frozen=True)
class Comparison:
    """One recorded quantity against ours; `error` is the largest deviation over the largest recorded value."""

    quantity: str
    error: float
    tolerance: float


@dataclass(frozen=True)
class Recording:
    name: str
    inputs: Any
    outputs: Any
    settings: dict[str, Any]
    dtype: str

    @property
    def tolerance(self) -> float:
        """1e-6 throughout: recordings in float32 reach 6e-7 by their own rounding, those in float64 far less."""
        return 1e-6


Case = Callable[[Recording], Iterator[Comparison]]
CASES: dict[str, Case] = {}


def case(*methods: str) -> Callable[[Case], Case]:
    """Register a case for the recordings whose name starts with one of the methods."""

    def register(function: Case) -> Case:
        CASES.update(dict.fromkeys(methods, function))
        return function

    return register


def recordings() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Recording:
    found = json.loads((FOLDER / f"{name}.json").read_text())
    return Recording(name, found["inputs"], found["outputs"], found["hyperparameters"], str(found["dtype"]))


def case_of(name: str) -> Case | None:
    """Return the case with the longest matching method."""
    fitting = [method for method in CASES if name == method or name.startswith(f"{method}__")]
    return CASES[max(fitting, key=len)] if fitting else None


def same(quantity: str, found: Any, expected: Any, tolerance: float, mask: Any = None) -> Comparison:
    """Return how far `found` is from `expected`, relative to the largest expected entry; `mask` limits the cells."""
    a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (found, expected))
    assert a.shape == b.shape, f"{quantity}: {tuple(a.shape)} against {tuple(b.shape)}"
    if mask is not None:
        kept = torch.as_tensor(mask, dtype=torch.float64) > 0
        a, b = a[kept], b[kept]
    scale = float(b.abs().max()) if b.numel() else 0.0
    error = float((a - b).abs().max()) if b.numel() else 0.0
    return Comparison(quantity, error / scale if scale > 0 else error, tolerance)
