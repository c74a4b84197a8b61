"""Rewards: a plain table from `type` to class; a new reward is a file and a row."""

from functools import reduce
from operator import or_
from typing import Annotated

from pydantic import Field

from trainer.rewards.base import Reward
from trainer.rewards.exact import ExactReward
from trainer.rewards.task import TaskReward

REWARDS: dict[str, type[Reward]] = {
    "task": TaskReward,
    "exact": ExactReward,
}

RewardConfig = Annotated[reduce(or_, REWARDS.values()), Field(discriminator="type")]  # type: ignore[valid-type]

__all__ = ["REWARDS", "Reward", "RewardConfig"]
