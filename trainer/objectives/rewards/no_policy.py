"""No policy loss: for objectives that are a regulariser alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Step
from trainer.objectives.preset import Preset
from trainer.objectives.stages import Surrogate

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class NoPolicy(Surrogate):
    """No policy loss.

    Rewards and advantages have no say; penalties and regularisers alone are learnt from.
    """

    title: ClassVar[str] = "No policy loss"
    formula: ClassVar[str] = "L_t = 0"
    type: Literal["no_policy"] = "no_policy"

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        return torch.zeros_like(batch.logprob)


PARTS = (NoPolicy,)
PRESETS: tuple[Preset, ...] = ()
