"""Reward shaping: a method is a module here and its name in FAMILY."""

from __future__ import annotations

from trainer.objectives.preset import Family
from trainer.objectives.rewards import (
    ares,
    ares_kl,
    confucius3,
    dmpo,
    dsdr,
    empo,
    entropy_minimisation,
    evol_rl,
    flowrl,
    g2rl,
    gcpo,
    no_policy,
    pear,
    random_reward,
    ttrl,
)

FAMILY = Family(
    "Reward shaping",
    (
        empo,
        ttrl,
        evol_rl,
        pear,
        ares,
        ares_kl,
        entropy_minimisation,
        random_reward,
        flowrl,
        dmpo,
        confucius3,
        no_policy,
        g2rl,
        dsdr,
        gcpo,
    ),
)
