"""Attention inside a packed row (trainer/packed.py), four ways, behind one name that transformers' models call.

`varlen`: torch's flash attention over ragged sequences, each completion's keys behind a copy of its prompt's; CUDA,
16 bits. `flex`: torch's compiled block-sparse attention; CUDA. `tiles`: segments of like lengths gathered into padded
batches for scaled_dot_product_attention; anywhere. `mask`: one N x N mask, the plain definition for tests.
Only attention sees copies or padding: every linear layer runs on the row as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trainer.budgets import PIECES, SHORTEST_PIECE
from trainer.packed import Integers, PackedRow, Segments

NAME = "packed"  # the name among transformers' attention functions
Attend = Callable[[Tensor, Tensor, Tensor, "float | None"], Tensor]  # [N, heads, D] three times, scale -> [N, heads, D]
# One more call of attention is worth computing this many more scores. CPU: a call cost as much as 1,000 scores of
# 32 x 32 to 4,200 of 256 x 256 (forward and backward, 9 heads of 64, one core). CUDA: a guess, not measured.
CALL_SCORES = {"cpu": 4096, "cuda": 1 << 20}
BLOCK = 128  # tokens in a block of flex attention


def install(lm: Any) -> None:
    """Make a transformers model attend through this module; without a plan it attends by SDPA as before.

    Raises ValueError where the model's attention cannot be exchanged.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    lm.set_attn_implementation(NAME)
    if lm.config._attn_implementation != NAME:
        raise ValueError(f"the attention of {type(lm).__name__} cannot be exchanged")


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Attend | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend inside a row, [1, heads, N, D] to [1, N, heads, D]; raises ValueError for what a row cannot do."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    odd = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if odd or options.get("dropout") or options.get("is_causal") is False:
        raise ValueError(f"packed rows do not know this attention ({', '.join(odd) or 'dropout or no causality'})")
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    return packed(query, key, value, scaling)[None], None


def _on(device: torch.device, *parts: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(part).to(device, non_blocking=True) for part in parts]


# mask


def mask_plan(row: PackedRow, device: torch.device) -> Attend:
    """Return attention with the whole mask."""
    return partial(_masked, _on(device, _allowed(row.segments))[0])


def _allowed(segments: Segments) -> np.ndarray:
    """Return which token of a row (first) attends to which (second), [N, N] bool."""
    own = np.repeat(segments.start, segments.count)
    root = np.repeat(np.where(segments.prefix_count > 0, segments.prefix_start, -1), segments.count)
    inside = (own[:, None] == own) | (root[:, None] == own)
    return inside & np.tri(len(own), dtype=bool)


def _masked(allowed: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    return _sdpa(query[None], key[None], value[None], allowed, scale)[0]


def _sdpa(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float | None) -> Tensor:
    """Attend, [B, T, heads, D]; on CUDA the masked kernels want as many heads of keys as of queries."""
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:
        times = query.shape[1] // key.shape[1]
        key, value, grouped = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1), False
    found = scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale, enable_gqa=grouped)
    return found.transpose(1, 2)


# tiles


def tiles_plan(row: PackedRow, device: torch.device) -> Attend:
    """Return attention in padded batches of like lengths: the fewest scores, a call having its price."""
    start, count, first, keys = _pieces(row.segments)
    tiles, back, end = [], np.empty(len(row), np.int64), 0
    for members in _batches(count, keys, CALL_SCORES[device.type]):
        queries = np.arange(count[members].max())
        columns = np.arange(keys[members].max())
        real = queries < count[members, None]  # [R, Q]
        from_row = np.where(real, start[members, None] + queries, start[members, None])
        back[from_row[real]] = end + np.arange(real.size).reshape(real.shape)[real]
        end += real.size
        segment = first[members, None]
        prefix = row.segments.prefix_count[segment]
        place = np.minimum(columns, keys[members, None] - 1)
        own = row.segments.start[segment] + place - prefix
        of_key = np.where(place < prefix, row.segments.prefix_start[segment] + place, own)  # [R, K]
        last = (keys - count)[members, None, None] + queries[:, None]  # a query sees its own key and those before
        tiles.append(_on(device, from_row, of_key, (columns <= last)[:, None]))
    (back_on_device,) = _on(device, back)
    return partial(_tiled, tiles, back_on_device)


def _pieces(segments: Segments) -> tuple[Integers, Integers, Integers, Integers]:
    """Cut long segments; return each piece's first token, tokens, segment and number of keys, [R] each."""
    size = np.maximum(SHORTEST_PIECE, -(-segments.count // PIECES))
    number = -(-segments.count // size)
    owner = np.repeat(np.arange(len(number)), number)
    offset = (np.arange(len(owner)) - np.repeat(number.cumsum() - number, number)) * size[owner]
    count = np.minimum(size[owner], segments.count[owner] - offset)
    return segments.start[owner] + offset, count, owner, segments.prefix_count[owner] + offset + count


def _batches(count: Integers, keys: Integers, call: int) -> list[Integers]:
    """Return the pieces of each batch so that all padded scores, plus `call` a batch, are fewest (sorted by keys)."""
    order = np.lexsort((count, keys))
    same = np.flatnonzero(np.diff(keys[order], prepend=-1) | np.diff(count[order], prepend=-1))
    ends = np.append(same[1:], len(order))  # pieces of equal shape are never parted
    width, depth = count[order][same], keys[order][same]
    best, chosen = np.zeros(len(same) + 1), np.zeros(len(same), np.int64)
    for j in range(len(same)):
        widest = np.maximum.accumulate(width[j::-1])[::-1]  # of the shapes i..j, for every i
        cost = best[: j + 1] + (ends[j] - same[: j + 1]) * widest * depth[j] + call
        chosen[j] = cost.argmin()
        best[j + 1] = cost[chosen[j]]
    batches, j = [], len(same) - 1
    while j >= 0:
        batches.append(order[same[chosen[j]] : ends[j]])
        j = int(chosen[j]) - 1
    return batches


def _tiled(
    tiles: list[list[Tensor]], back: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> Tensor:
    found = []
    for from_row, of_key, allowed in tiles:
        taken = query.index_select(0, from_row.flatten()).unflatten(0, from_row.shape)
        keys, values = (s.index_select(0, of_key.flatten()).unflatten(0, of_key.shape) for s in (key, value))
        found.append(_sdpa(taken, keys, values, allowed, scale).flatten(0, 1))
    return torch.cat(found).index_select(0, back)


# varlen


def varlen_plan(row: PackedRow, device: torch.device) -> Attend:
    """Return flash attention over ragged sequences; 16 bits on CUDA only."""
    segments = row.segments
    ends = segments.keys.cumsum()
    place = np.arange(ends[-1]) - np.repeat(ends - segments.keys, segments.keys)
    owner = np.repeat(np.arange(len(ends)), segments.keys)
    prefix = segments.prefix_count[owner]
    of_key = np.where(
        place < prefix, segments.prefix_start[owner] + place, segments.start[owner] + place - prefix
    )  # [sum of keys]
    bounds = (np.append(0, segments.count.cumsum()), np.append(0, ends))
    to_queries, to_keys = _on(device, *(bound.astype(np.int32) for bound in bounds))
    longest = int(segments.count.max()), int(segments.keys.max())
    (keys,) = _on(device, of_key)
    return partial(_ragged, keys, to_queries, to_keys, longest)


def _ragged(
    of_key: Tensor,
    to_queries: Tensor,
    to_keys: Tensor,
    longest: tuple[int, int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    found = varlen_attn(
        query.contiguous(), key.index_select(0, of_key), value.index_select(0, of_key), to_queries, to_keys, *longest,
        scale=scale, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found


# flex


def flex_plan(row: PackedRow, device: torch.device) -> Attend:
    """Return block-sparse attention; compiled on CUDA, where blocks that nobody sees are skipped."""
    from torch.nn.attention.flex_attention import BlockMask

    segments, size = row.segments, len(row)
    own, root = _on(
        device,
        np.repeat(segments.start, segments.count),
        np.repeat(np.where(segments.prefix_count > 0, segments.prefix_start, -1), segments.count),
    )

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & ((own[query] == own[key]) | (root[query] == own[key]))

    touched, full = _blocks(segments, size)
    mixed, whole = (_listed(blocks, device) for blocks in (touched & ~full, full))
    blocks = BlockMask.from_kv_blocks(
        *mixed,
        *whole,
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(size, size),  # type: ignore[misc]
    )
    return partial(_flexible, blocks)


def _blocks(segments: Segments, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which blocks of queries and keys hold a pair that attends, and which hold nothing else, [B, B] bool."""
    number = -(-size // BLOCK)
    touched, full = np.zeros((number, number), bool), np.zeros((number, number), bool)
    for start, count, prefix, length in zip(*vars(segments).values(), strict=True):
        rows = slice(start // BLOCK, -(-(start + count) // BLOCK))
        inner = slice(-(-start // BLOCK), (start + count) // BLOCK)  # blocks of this segment alone
        touched[rows, rows] = True
        full[inner, inner] = True
        if length:
            touched[rows, prefix // BLOCK : -(-(prefix + length) // BLOCK)] = True
            full[inner, -(-prefix // BLOCK) : (prefix + length) // BLOCK] = True
    return np.tril(touched), np.tril(full, -1)


def _listed(blocks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many blocks are set in each row, [1, 1, B], and their columns first, [1, 1, B, B]; int32."""
    first = np.argsort(~blocks, axis=1, kind="stable")
    number, columns = _on(device, *(part.astype(np.int32)[None, None] for part in (blocks.sum(1), first)))
    return number, columns


def _flexible(blocks: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    states = [part.transpose(0, 1)[None] for part in (query, key, value)]
    found = _flex(query.is_cuda)(
        *states, block_mask=blocks, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )  # [1, heads, N, D]
    return found[0].transpose(0, 1)


@cache
def _flex(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    attend: Callable[..., Any] = flex_attention
    return torch.compile(attend, dynamic=True) if compiled else attend


PLANS: dict[str, Callable[[PackedRow, torch.device], Attend]] = {
    "varlen": varlen_plan,
    "flex": flex_plan,
    "tiles": tiles_plan,
    "mask": mask_plan,
}
