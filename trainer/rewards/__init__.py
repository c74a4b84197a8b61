"""Rewards: a plain table from `type` to class; a new reward is a file and a row."""

from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field

from trainer.rewards.base import Reward
from trainer.rewards.exact import ExactReward
from trainer.rewards.format import FormatReward
from trainer.rewards.math_verify import MathVerifyReward
from trainer.rewards.numeric import NumericReward
from trainer.rewards.regex import RegexReward
from trainer.rewards.task import TaskReward
from trainer.rewards.template_form import TemplateFormReward

REWARDS: dict[str, type[Reward]] = {
    "task": TaskReward,
    "exact": ExactReward,
    "numeric": NumericReward,
    "math_verify": MathVerifyReward,
    "regex": RegexReward,
    "format": FormatReward,
    "template_form": TemplateFormReward,
}

RewardConfig: Any = Annotated[
    reduce(or_, REWARDS.values()), Field(discriminator="type")
]  # mypy cannot follow a union made from a table

__all__ = ["REWARDS", "Reward", "RewardConfig"]
