"""Covariance: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.covariance import clip_cov, cw_grpo, kl_cov, spear
from trainer.objectives.preset import Family

FAMILY = Family(
    "Covariance",
    (
        clip_cov,
        kl_cov,
        cw_grpo,
        spear,
    ),
)
