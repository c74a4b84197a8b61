"""Baselines and what others build on: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.common import (
    aggregations,
    entropy_bonus,
    group_norm,
    importance_ratio,
    kl_penalty,
    overlong_filter,
    soft_overlong,
    zero_variance_filter,
)
from trainer.objectives.preset import Family

FAMILY = Family(
    "Baselines",
    (
        group_norm,
        soft_overlong,
        overlong_filter,
        zero_variance_filter,
        importance_ratio,
        kl_penalty,
        entropy_bonus,
        aggregations,
    ),
)
