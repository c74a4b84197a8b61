"""Bytes that a decoder layer leaves for the backward pass, counted from its shapes.

What is counted is what autograd saves in transformers' layers with scaled-dot-product attention: the inputs of linear
layers whose weight (or adapter) is trained, both factors of products, the inputs of norms, and query, key, value and
output of attention, which keeps one number a head instead of a [T, T] map. `tests/trainer/memory` counts the tensors
of real layers and compares.
"""

from __future__ import annotations

from trainer.config import ModelConfig
from trainer.memory.batch import Batch
from trainer.model_files import ModelInfo

WIDE = 4  # bytes of float32, in which norms, statistics and adapters compute


def width_of(model: ModelConfig) -> int:
    """Return the bytes of one weight or activation."""
    return WIDE if model.dtype == "float32" else 2


def layer_bytes(info: ModelInfo, model: ModelConfig, batch: Batch) -> int:
    """Return what one token leaves in one layer, bytes; attention as packed rows have it (trainer/attention.py)."""
    width, lora = width_of(model), model.lora.enabled
    hidden, inner = info.hidden_size, info.intermediate_size
    query, pair = info.heads * info.head_size, 2 * info.kv_heads * info.head_size
    norm = _norm(info, full=not lora, narrow=width < WIDE)
    attention = 3 * query + int(pair * batch.keys) + int(batch.scores)
    if info.query_norm:
        attention += (query + pair // 2) * (1 + (not lora) + (width < WIDE))
    feed_forward = (4 if info.gated else 2) * inner
    statistics = WIDE * (info.heads + (2 if info.gated else 4) + info.query_norm * (info.heads + info.kv_heads))
    adapters = _adapter_bytes(info, model) if lora else 0
    return width * (2 * norm * hidden + attention + feed_forward) + statistics + adapters


def passing_bytes(info: ModelInfo, model: ModelConfig) -> int:
    """Return what a token needs while a layer runs and then gives back, in either direction, bytes."""
    return width_of(model) * (3 * info.intermediate_size + 3 * info.hidden_size)


def _norm(info: ModelInfo, *, full: bool, narrow: bool) -> int:
    """Return how many [H] vectors a norm leaves in the model's dtype: input, normalised, output."""
    if not info.gated:  # a layer norm of the older kind is one operation
        return 2
    return 2 + full + narrow  # a narrow input is kept in float32


def _adapter_bytes(info: ModelInfo, model: ModelConfig) -> int:
    """Return what adapters add: their narrow middles, and float32 copies of their inputs where the model is narrow."""
    names = adapted(info, model)
    middles = WIDE * model.lora.rank * len(names)
    if width_of(model) == WIDE:
        return middles
    hidden, inner = info.hidden_size, info.intermediate_size
    attention = (3 if "k_proj" in info.linear_sides else 1) * hidden + info.heads * info.head_size
    inputs = attention + (2 if info.gated else 1) * hidden + inner
    share = sum(names.values()) / max(1, sum(info.linear_sides.values()))
    narrow = 2 * hidden + info.heads * info.head_size + inner  # what the copies are of is not kept itself
    return middles + int(share * (WIDE * inputs - 2 * narrow))


def adapted(info: ModelInfo, model: ModelConfig) -> dict[str, int]:
    """Return inputs plus outputs of the linear layers that get adapters, by name."""
    wanted = {name.rpartition(".")[2] for name in model.lora.target_modules}
    return {name: sides for name, sides in info.linear_sides.items() if not wanted or name in wanted}
