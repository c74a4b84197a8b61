"""The bare importance ratio, without any clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.preset import Preset
from trainer.objectives.ratio import RatioSurrogate, log_ratio

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class ImportanceRatio(RatioSurrogate):
    """Unclipped ratio.

    Loss -A r. Nothing holds the policy near the one that sampled: use it on-policy, or with a penalty such as KL-Cov.
    """

    title: ClassVar[str] = "Unclipped ratio"
    paper: ClassVar[str] = "2505.22617"
    formula: ClassVar[str] = r"x_t = -A_t r_t"
    blind: ClassVar[bool] = True
    type: Literal["importance_ratio"] = "importance_ratio"

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        assert batch.advantage is not None
        return self.corrected(-batch.advantage * log_ratio(batch).exp(), batch, step)


PARTS = (ImportanceRatio,)
PRESETS: tuple[Preset, ...] = ()
