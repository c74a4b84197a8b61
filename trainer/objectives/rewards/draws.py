"""Random numbers that belong to a completion: the same whatever its row, its process and its micro-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.objectives.base import Step

GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64 (Steele et al. 2014)
WORD = 1 << 64


def draws(step: Step, trajectory: Tensor, purpose: int) -> Tensor:
    """Return a number in [0, 1) for each completion, [S], float64, from the run's seed, the step and its trajectory.

    `purpose` keeps the draws of different parts apart. SplitMix64 on the integers, so every device agrees.
    """
    start = 0
    for number in (step.seed, step.step, purpose):
        start = _scramble((start + number + GOLDEN) % WORD)
    mixed = trajectory.long() * _signed(GOLDEN) + _signed(start)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(FIRST)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(SECOND)
    mixed = mixed ^ _shifted(mixed, 31)
    return _shifted(mixed, 11).double() / 2**53


def _scramble(word: int) -> int:
    word = (word ^ word >> 30) * FIRST % WORD
    word = (word ^ word >> 27) * SECOND % WORD
    return word ^ word >> 31


def _signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word


def _shifted(word: Tensor, by: int) -> Tensor:
    """Return the words shifted right as unsigned ones."""
    return torch.bitwise_and(word >> by, (1 << (64 - by)) - 1)
