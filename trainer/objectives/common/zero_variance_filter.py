"""Leaving out prompts that teach nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.preset import Preset
from trainer.objectives.reductions import equal_rewards
from trainer.objectives.stages import SampleFilter

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class ZeroVarianceFilter(SampleFilter):
    """Drop groups whose rewards are all equal (DAPO's dynamic sampling, without the resampling).

    Their advantage is zero, so only the denominator changes: without them the remaining tokens weigh more.
    """

    title: ClassVar[str] = "Zero-variance filter"
    paper: ClassVar[str] = "2503.14476"
    formula: ClassVar[str] = r"m_i = 0 \text{ where } R_j = R_i \text{ for all } j \in g(i)"
    type: Literal["zero_variance_filter"] = "zero_variance_filter"

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        return ~equal_rewards(batch)


PARTS = (ZeroVarianceFilter,)
PRESETS: tuple[Preset, ...] = ()
