"""DAPO's overlong filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Step
from trainer.objectives.preset import Preset
from trainer.objectives.stages import SampleFilter

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class OverlongFilter(SampleFilter):
    """Overlong filter (DAPO).

    Completions cut off at the limit leave the loss and its denominator; they still count in their group's mean.
    """

    title: ClassVar[str] = "Overlong filter"
    paper: ClassVar[str] = "2503.14476"
    formula: ClassVar[str] = r"m_i = 0 \text{ where } o_i \text{ was cut off at } L_{\max}"
    type: Literal["overlong_filter"] = "overlong_filter"

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        if batch.truncated is None:
            return torch.ones_like(batch.group, dtype=torch.bool)
        return ~batch.truncated


PARTS = (OverlongFilter,)
PRESETS: tuple[Preset, ...] = ()
