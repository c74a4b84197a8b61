"""Skywork-OR1's adaptive entropy coefficient."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from trainer.objectives.base import Observation, Statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import Controller
from trainer.objectives.stock import BONUS, CLIP, GROUP, TOKENS
from trainer.part import setting


class Skywork(Controller):
    """Adaptive entropy coefficient (Skywork-OR1).

    After each step the coefficient of the entropy bonus moves up by delta where entropy is below the target, else down;
    the bonus counts only while entropy is below. It keeps entropy from falling far below and never lowers it.
    """

    title: ClassVar[str] = "Adaptive coefficient (Skywork)"
    paper: ClassVar[str] = "2505.22312"
    formula: ClassVar[str] = (
        r"c_{k+1} = \operatorname{clip}\bigl(c_k \pm \delta, c_{\min}, c_{\max}\bigr),\ "
        r"+ \text{ where } \bar H_k < H^*;\quad "
        r"L \mathrel{-}= c_k\,\bar H\ \mathbf 1[\bar H_k < H^*]"
    )
    moves: ClassVar[frozenset[str]] = frozenset({"entropy_coefficient", "entropy_enabled"})
    requires: ClassVar[frozenset[str]] = frozenset({"entropy_bonus"})
    type: Literal["skywork"] = "skywork"
    floor: float = setting(
        0.2, help="Entropy below which the bonus counts.", unit="nats", ge=0, le=20, knob="entropy_target"
    )
    delta: float = setting(1e-4, help="Change of the coefficient in a step.", gt=0, le=1)
    lowest: float = setting(0.0, help="Smallest coefficient.", ge=-1, le=1, advanced=True)
    highest: float = setting(0.005, help="Largest coefficient.", ge=-1, le=1)
    enabled: bool = setting(
        False, help="Whether the bonus counts before the first measurement.", advanced=True, knob="entropy_enabled"
    )
    estimator: Literal["sampled", "exact"] = setting(
        "sampled", help="Which entropy is compared: -mean log-prob as in the authors' code, or the exact one."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Skywork:
        if self.lowest > self.highest:
            raise ValueError(f"lowest is {self.lowest}, above highest, {self.highest}; lower it")
        return self

    def reads(self) -> frozenset[Statistic]:
        return frozenset({"entropy"}) if self.estimator == "exact" else frozenset()

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        entropy = seen.entropy_sampled if self.estimator == "sampled" else seen.entropy
        if not math.isfinite(entropy):
            return state, {}
        below = entropy < knobs["entropy_target"]
        moved = knobs["entropy_coefficient"] + (self.delta if below else -self.delta)
        return state, {
            "entropy_coefficient": min(max(moved, self.lowest), self.highest),
            "entropy_enabled": float(below),
        }

    def band(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float]:
        value = knobs.get("entropy_target", self.floor)
        return value, value

    def course(self, x: float) -> tuple[float, float]:
        return self.floor, self.floor


PARTS = (Skywork,)
PRESETS = (
    Preset(
        name="skywork-adaptive",
        title="Adaptive entropy coefficient",
        summary="The coefficient of the entropy bonus climbs by a small step while entropy is below a floor and "
        "comes down while it is above; the bonus counts only below the floor, so it cannot run away.",
        when="A safe floor under entropy, in no hurry: at the default step it takes tens of updates to act.",
        formula=Skywork.formula,
        reference=paper("Skywork Open Reasoner 1 Technical Report", "2505.22312", 2025),
        confidence="code",
        parts=[GROUP, CLIP, BONUS, TOKENS, {"type": "skywork"}],
    ),
)
