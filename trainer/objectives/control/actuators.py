"""ACTUATORS: what the thermostat can turn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["bonus", "polarity", "sign", "temperature"]


@dataclass(frozen=True)
class Actuator:
    """What the thermostat turns: a knob, the part that has it ("" for every run's own), limits and what is expected.

    `gain` is the prior of nats gained for a predicted nat, `sure` the std of its log. `unmeasured` is the authority
    where nobody measured it (nats per unit).
    """

    knob: str
    part: str
    said: str
    rest: float
    low: float
    high: float
    slew: float
    gain: float = 0.7
    sure: float = 1.5
    unmeasured: float = 0.05
    logarithmic: bool = False  # acts at once, by the log of its value, on what is measured next

    def position(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value

    def value(self, position: float) -> float:
        return math.exp(position) if self.logarithmic else position


ACTUATORS: dict[Kind, Actuator] = {
    "bonus": Actuator("entropy_coefficient", "entropy_bonus", "the entropy coefficient", 0.0, -0.5, 1.0, 0.25),
    "polarity": Actuator("polarity_balance", "polarity_balance", "the polarity balance", 0.0, -0.9, 0.9, 0.2),
    "sign": Actuator("sign_balance", "sign_balance", "the sign balance", 0.0, -0.9, 0.9, 0.2),
    "temperature": Actuator(
        "temperature", "", "the sampling temperature", 1.0, 0.5, 2.0, 0.1, 1.0, 0.3, 0.4, logarithmic=True
    ),
}
