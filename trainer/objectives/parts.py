"""PARTS: every part by its type, in pipeline order. A new part is a file and a row here."""

from __future__ import annotations

from trainer.objectives.aggregations import ConstantNorm, SequenceMeanTokenMean, SequenceMeanTokenSum, TokenMean
from trainer.objectives.base import ObjectivePart
from trainer.objectives.entropy_bonus import EntropyBonus
from trainer.objectives.group_norm import GroupNorm
from trainer.objectives.importance_ratio import ImportanceRatio
from trainer.objectives.ppo_clip import PPOClip

PARTS: dict[str, type[ObjectivePart]] = {
    "group_norm": GroupNorm,
    "ppo_clip": PPOClip,
    "importance_ratio": ImportanceRatio,
    "entropy_bonus": EntropyBonus,
    "token_mean": TokenMean,
    "seq_mean_token_mean": SequenceMeanTokenMean,
    "seq_mean_token_sum": SequenceMeanTokenSum,
    "const_norm": ConstantNorm,
}
