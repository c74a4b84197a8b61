"""The temperature of the side batch, set by how far entropy is from its target."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from trainer.objectives.base import Observation, Statistic
from trainer.objectives.preset import Preset
from trainer.objectives.stages import Controller
from trainer.part import setting


class AuxiliaryTemperature(Controller):
    """Temperature controller of the side batch.

    Switch (AEPO): hot when the last entropy was at or below the target, else cold. Proportional (SCOPE-RL):
    1 + target - entropy, between cold and hot.
    """

    title: ClassVar[str] = "Side-batch temperature"
    paper: ClassVar[str] = "2510.08141"
    formula: ClassVar[str] = (
        r"T_{k+1} = \begin{cases} T_{\text{hot}} & \bar H_k \le H^* \\ T_{\text{cold}} & \text{else} \end{cases}"
        r"\quad\text{or}\quad T_{k+1} = \operatorname{clip}(1 + H^* - \bar H_k, T_{\text{cold}}, T_{\text{hot}})"
    )
    moves: ClassVar[frozenset[str]] = frozenset({"auxiliary_temperature"})
    type: Literal["auxiliary_temperature"] = "auxiliary_temperature"
    rule: Literal["switch", "proportional"] = setting("switch", help="Jump between two temperatures, or glide.")
    target: float = setting(0.5, help="Entropy to hold.", unit="nats", ge=0, le=20, knob="entropy_target")
    hot: float = setting(1.2, help="Highest side temperature.", ge=1, le=10)
    cold: float = setting(0.8, help="Lowest side temperature.", gt=0, le=1)
    first: float = setting(
        1.2,
        help="Side temperature before anything was measured.",
        gt=0,
        le=10,
        advanced=True,
        knob="auxiliary_temperature",
    )
    estimator: Literal["sampled", "exact"] = setting(
        "sampled", help="Which entropy is compared: -mean log-prob as in the authors' code, or the exact one."
    )

    @model_validator(mode="after")
    def _between(self) -> AuxiliaryTemperature:
        if not self.cold <= self.first <= self.hot:
            raise ValueError(f"first is {self.first}; choose a value between cold, {self.cold}, and hot, {self.hot}")
        return self

    def reads(self) -> frozenset[Statistic]:
        return frozenset({"entropy"}) if self.estimator == "exact" else frozenset()

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        entropy = seen.entropy_sampled if self.estimator == "sampled" else seen.entropy
        if not math.isfinite(entropy):
            return state, {}
        target = knobs["entropy_target"]
        if self.rule == "switch":
            return state, {"auxiliary_temperature": self.hot if entropy <= target else self.cold}
        return state, {"auxiliary_temperature": min(max(1 + target - entropy, self.cold), self.hot)}

    def band(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float]:
        value = knobs.get("entropy_target", self.target)
        return value, value

    def course(self, x: float) -> tuple[float, float]:
        return self.target, self.target


PARTS = (AuxiliaryTemperature,)
PRESETS: tuple[Preset, ...] = ()
