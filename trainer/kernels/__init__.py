"""Per-token log-prob and entropy from hidden states, without keeping [N, V] logits: one door, several rooms.

docs/kernels.md is the manual; it stands alone.
"""

from trainer.kernels.chunks import CHUNK_BYTES
from trainer.kernels.definitions import EXTRAS
from trainer.kernels.door import linear_logprob_entropy, linear_token_loss
from trainer.kernels.extras import gradient_features, linear_extras, squared_hellinger
from trainer.kernels.head import Head, head_of
from trainer.kernels.rooms import ROOMS, choose_room
from trainer.kernels.stats import TokenStats

__all__ = [
    "CHUNK_BYTES",
    "EXTRAS",
    "ROOMS",
    "Head",
    "TokenStats",
    "choose_room",
    "gradient_features",
    "head_of",
    "linear_extras",
    "linear_logprob_entropy",
    "linear_token_loss",
    "squared_hellinger",
]
