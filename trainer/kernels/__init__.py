"""Per-token log-prob and entropy from hidden states, without keeping [N, V] logits: one door, several rooms."""

from trainer.kernels.door import ROOMS, linear_logprob_entropy
from trainer.kernels.stats import TokenStats

__all__ = ["ROOMS", "TokenStats", "linear_logprob_entropy"]
