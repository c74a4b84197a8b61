"""Control: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.control import (
    aepo,
    auxiliary_temperature,
    balance,
    entrocraft,
    entropic,
    qwenlong,
    safe,
    scope_rl,
    skywork,
    thermostat,
)
from trainer.objectives.preset import Family

FAMILY = Family(
    "Control",
    (
        skywork,
        aepo,
        scope_rl,
        auxiliary_temperature,
        entrocraft,
        balance,
        thermostat,
        qwenlong,
        safe,
        entropic,
    ),
)
