"""What can go wrong, as a small tree; every message is one sentence that names the cause and the fix.

TrainerError
├── ConfigError        a setting, file or combination that cannot work
├── ResourceError      memory, disk or devices do not suffice
└── RunFailed          the run itself cannot go on (three non-finite steps in a row, broken checkpoint)
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of everything the trainer raises on purpose.

    `field` is the dotted path in the run's config that it concerns ("" where it concerns several, or none).
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ConfigError(TrainerError):
    """A setting that cannot work."""


class ResourceError(TrainerError):
    """Memory, disk or devices do not suffice."""


class RunFailed(TrainerError):
    """The run cannot go on."""
