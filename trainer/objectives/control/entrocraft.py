"""Entrocraft: keep entropy in a scheduled band by choosing which completions to learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from trainer.lazy import torch
from trainer.objectives.base import Statistic, Step, demand
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import sequence_advantage
from trainer.objectives.schedule import Points, cosine, drawn, linear, progress
from trainer.objectives.stages import SampleFilter
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class Entrocraft(SampleFilter):
    """Entrocraft: a scheduled entropy band, held by rejecting completions.

    Above the band only completions with advantage >= 0 are learnt from (that lowers entropy), below it only those with
    advantage <= 0 (that raises it), inside it all. Described: any advantage, and rejected completions leave the
    denominator. Released: the advantage outside the band is the raw score cut off at 0, and everything stays in the
    denominator; with 0/1 rewards its lower branch learns nothing, so give wrong answers a score of -1.
    """

    title: ClassVar[str] = "Entrocraft band"
    paper: ClassVar[str] = "2604.26326"
    formula: ClassVar[str] = (
        r"\text{keep } i \text{ iff } A_i \ge 0 \text{ where } \bar H > b_+(k),\ "
        r"A_i \le 0 \text{ where } \bar H < b_-(k)"
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy"})
    type: Literal["entrocraft"] = "entrocraft"
    variant: Literal["described", "released"] = setting(
        "described", help="As the paper describes it, or as the released code does it."
    )
    schedule: Literal["linear", "cosine", "drawn"] = setting("linear", help="Course of the band over the run.")
    low_start: float = setting(
        0.6,
        help="Lower edge at the start; steering it holds the edge from then on.",
        unit="nats",
        ge=0,
        le=20,
        knob="entropy_low",
        show_if={"schedule": ["linear", "cosine"]},
    )
    low_end: float = setting(
        0.4, help="Lower edge at the end.", unit="nats", ge=0, le=20, show_if={"schedule": ["linear", "cosine"]}
    )
    high_start: float = setting(
        0.7,
        help="Upper edge at the start; steering it holds the edge from then on.",
        unit="nats",
        ge=0,
        le=20,
        knob="entropy_high",
        show_if={"schedule": ["linear", "cosine"]},
    )
    high_end: float = setting(
        0.5, help="Upper edge at the end.", unit="nats", ge=0, le=20, show_if={"schedule": ["linear", "cosine"]}
    )
    points: Points = setting(
        help="Drawn middle of the band: (share of the run, nats).",
        default_factory=list,
        show_if={"schedule": "drawn"},
    )
    width: float = setting(
        0.1, help="Width of the drawn band.", unit="nats", ge=0, le=20, show_if={"schedule": "drawn"}
    )

    @model_validator(mode="after")
    def _possible(self) -> Entrocraft:
        if self.schedule == "drawn" and not self.points:
            raise ValueError("points is empty; draw at least one point, or choose another schedule")
        if self.low_start > self.high_start or self.low_end > self.high_end:
            raise ValueError("the lower edge is above the upper edge; lower low_start and low_end")
        return self

    def course(self, x: float) -> tuple[float, float]:
        if self.schedule == "drawn":
            middle = drawn(self.points, x)
            return max(0.0, middle - self.width / 2), middle + self.width / 2
        move = linear if self.schedule == "linear" else cosine
        return move(self.low_start, self.low_end, x), move(self.high_start, self.high_end, x)

    def band(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float]:
        low, high = self.course(progress(step, total_steps))
        # a knob that no longer has its initial value was steered: it holds its edge whatever the schedule says
        low = knobs["entropy_low"] if knobs.get("entropy_low", self.low_start) != self.low_start else low
        high = knobs["entropy_high"] if knobs.get("entropy_high", self.high_start) != self.high_start else high
        return min(low, high), max(low, high)

    def side(self, batch: TokenBatch, step: Step) -> int:
        """Return 1 above the band, -1 below it, 0 inside, by the exact token-mean entropy of the step-start policy."""
        assert batch.mask is not None
        known = batch.entropy if batch.old_entropy is None else batch.old_entropy
        entropy = demand(known, "old_entropy", self)
        mean = float((entropy * batch.mask).sum() / batch.mask.sum().clamp(min=1))
        low, high = self.band(step.step, step.total_steps, step.knobs)
        side = int(mean > high) - int(mean < low)
        step.metrics |= {"objective/band_low": low, "objective/band_high": high, "objective/band_side": float(side)}
        return side

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        if self.variant == "released":
            return torch.ones_like(batch.group, dtype=torch.bool)
        return self.side(batch, step) * sequence_advantage(batch) >= 0

    def rescore(self, batch: TokenBatch, step: Step) -> Tensor:
        assert batch.advantage is not None
        side = self.side(batch, step) if self.variant == "released" else 0
        if side == 0:
            return batch.advantage
        score = batch.reward.clamp(min=0) if side > 0 else batch.reward.clamp(max=0)
        return batch.per_token(score).to(batch.advantage.dtype)


PARTS = (Entrocraft,)
PRESETS = (
    Preset(
        name="entrocraft",
        title="Entrocraft",
        summary="Entropy is led along a scheduled band by choosing what to learn from: above the band only "
        "completions with advantage >= 0, below it only those with advantage <= 0. The band can be drawn. The "
        "authors add a k3 KL penalty of 0.001 to the reference model; add kl_penalty for it.",
        when="A planned course of entropy over the run, with any advantage.",
        formula=Entrocraft.formula,
        reference=paper("Entrocraft", "2604.26326", 2026),
        confidence="paper",
        parts=[GROUP, {"type": "entrocraft"}, CLIP, TOKENS],
    ),
)
