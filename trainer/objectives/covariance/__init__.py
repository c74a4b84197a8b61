"""Covariance: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.base import Family
from trainer.objectives.covariance import clip_cov, cw_grpo, kl_cov, spear

FAMILY = Family(
    "Covariance",
    (
        clip_cov,
        kl_cov,
        cw_grpo,
        spear,
    ),
)
