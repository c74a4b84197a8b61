"""Per-token log-prob and entropy from hidden states, without keeping [N, V] logits: one door, several rooms."""

from trainer.kernels.door import CHUNK_BYTES, ROOMS, linear_logprob_entropy
from trainer.kernels.extras import EXTRAS, gradient_features, linear_extras, squared_hellinger
from trainer.kernels.stats import TokenStats

__all__ = [
    "CHUNK_BYTES",
    "EXTRAS",
    "ROOMS",
    "TokenStats",
    "gradient_features",
    "linear_extras",
    "linear_logprob_entropy",
    "squared_hellinger",
]
