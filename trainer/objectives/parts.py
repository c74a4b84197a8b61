"""PARTS: every part by its type, in pipeline order. A new part is a file and a row here."""

from __future__ import annotations

from trainer.objectives.aepo import AEPOSampling
from trainer.objectives.aggregations import ConstantNorm, SequenceMeanTokenMean, SequenceMeanTokenSum, TokenMean
from trainer.objectives.auxiliary_temperature import AuxiliaryTemperature
from trainer.objectives.base import ObjectivePart
from trainer.objectives.clip_cov import ClipCov
from trainer.objectives.entrocraft import Entrocraft
from trainer.objectives.entropy_bonus import EntropyBonus
from trainer.objectives.entropy_target import EntropyTarget
from trainer.objectives.group_norm import GroupNorm
from trainer.objectives.importance_ratio import ImportanceRatio
from trainer.objectives.kl_cov import KLCov
from trainer.objectives.kl_penalty import KLPenalty
from trainer.objectives.overlong_filter import OverlongFilter
from trainer.objectives.ppo_clip import PPOClip
from trainer.objectives.scope_rl import ScopeSampling, ScopeTerm
from trainer.objectives.skywork import Skywork
from trainer.objectives.soft_overlong import SoftOverlong
from trainer.objectives.top_entropy import TopEntropy
from trainer.objectives.zero_variance_filter import ZeroVarianceFilter

PARTS: dict[str, type[ObjectivePart]] = {
    "aepo_sampling": AEPOSampling,
    "scope_sampling": ScopeSampling,
    "soft_overlong": SoftOverlong,
    "group_norm": GroupNorm,
    "overlong_filter": OverlongFilter,
    "zero_variance_filter": ZeroVarianceFilter,
    "entrocraft": Entrocraft,
    "clip_cov": ClipCov,
    "top_entropy": TopEntropy,
    "ppo_clip": PPOClip,
    "importance_ratio": ImportanceRatio,
    "kl_cov": KLCov,
    "kl_penalty": KLPenalty,
    "entropy_bonus": EntropyBonus,
    "scope_term": ScopeTerm,
    "token_mean": TokenMean,
    "seq_mean_token_mean": SequenceMeanTokenMean,
    "seq_mean_token_sum": SequenceMeanTokenSum,
    "const_norm": ConstantNorm,
    "skywork": Skywork,
    "auxiliary_temperature": AuxiliaryTemperature,
    "entropy_target": EntropyTarget,
}
