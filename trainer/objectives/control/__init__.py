"""Control: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.base import Family
from trainer.objectives.control import aepo, auxiliary_temperature, entrocraft, entropy_target, scope_rl, skywork

FAMILY = Family(
    "Control",
    (
        skywork,
        aepo,
        scope_rl,
        auxiliary_temperature,
        entrocraft,
        entropy_target,
    ),
)
