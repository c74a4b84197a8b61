"""PPO's clipped ratio with separate ends (DAPO's clip-higher) and dual clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.preset import Preset
from trainer.objectives.ratio import RatioSurrogate, clip_of, clipped, log_ratio, report_clip
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class PPOClip(RatioSurrogate):
    """Clipped ratio (PPO), clip-higher (DAPO), dual clip.

    Loss max(-A r, -A clip(r, 1 - low, 1 + high)); where A < 0 at most -A c. A token whose ratio has already moved past
    the clip in the direction of its advantage gets no gradient.
    """

    title: ClassVar[str] = "Clipped ratio"
    paper: ClassVar[str] = "1707.06347; 2503.14476"
    formula: ClassVar[str] = (
        r"x_t = \max\bigl(-A_t r_t,\ -A_t \operatorname{clip}(r_t, 1-\epsilon_-, 1+\epsilon_+)\bigr),\quad "
        r"x_t \leftarrow \min(x_t, -A_t\,c) \text{ where } A_t < 0"
    )
    blind: ClassVar[bool] = True
    type: Literal["ppo_clip"] = "ppo_clip"
    clip_low: float = setting(0.2, help="The ratio may fall this far below 1.", ge=0, le=1, knob="clip_low")
    clip_high: float = setting(
        0.2,
        help="The ratio may rise this far above 1; more than the lower end keeps rare tokens alive.",
        ge=0,
        le=100,
        knob="clip_high",
    )
    dual_clip: float = setting(
        3.0,
        help="Bound on the ratio of tokens with negative advantage; 0 turns it off.",
        ge=0,
        le=1000,
        advanced=True,
    )

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage, ratio = batch.need("advantage"), log_ratio(batch).exp()
        below, above = clip_of(batch, step)
        low, high = 1 - below, 1 + above
        report_clip(batch, step, ratio, low, high)
        return self.corrected(clipped(advantage, ratio, low, high, self.dual_clip), batch, step)


PARTS = (PPOClip,)
PRESETS: tuple[Preset, ...] = ()
