"""Sums, means and quantiles over the domains a statistic may have: completion, group, step.

Masked entries never count. Nothing here loops over completions, so a step of two million tokens costs a few sorts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


def counts_of(batch: TokenBatch) -> Tensor:
    """Return which tokens count, [N] bool."""
    return torch.ones_like(batch.logprob, dtype=torch.bool) if batch.mask is None else batch.mask > 0


def valid_of(batch: TokenBatch) -> Tensor:
    """Return which completions have a usable reward, [S] bool."""
    finite = torch.isfinite(batch.reward)
    return finite if batch.valid is None else finite & batch.valid


def groups_of(batch: TokenBatch) -> tuple[Tensor, int]:
    """Return a dense group number of each completion, [S], and their count; auxiliary rollouts group apart."""
    key = batch.group.long() * 2
    if batch.auxiliary is not None:
        key = key + batch.auxiliary.long()
    kinds, dense = torch.unique(key, return_inverse=True)
    return dense, int(kinds.shape[0])


# -- step ---------------------------------------------------------------------------------------------------------


def step_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of the values that count, []; 0 where none does."""
    return torch.where(counts, values, torch.zeros_like(values)).sum() / counts.sum().clamp(min=1)


def step_std(values: Tensor, counts: Tensor, *, unbiased: bool) -> Tensor:
    """Return the std of the values that count, []; 0 for fewer than two."""
    centred = torch.where(counts, values - step_mean(values, counts), torch.zeros_like(values))
    number = counts.sum() - int(unbiased)
    return (centred.square().sum() / number.clamp(min=1)).sqrt()


def whiten(values: Tensor, counts: Tensor) -> Tensor:
    """Return (x - mean) * rsqrt(unbiased variance + 1e-8) over the values that count; 0 elsewhere."""
    mean, std = step_mean(values, counts), step_std(values, counts, unbiased=True)
    return torch.where(counts, (values - mean) * (std.square() + 1e-8).rsqrt(), torch.zeros_like(values))


def quantile(values: Tensor, q: float) -> Tensor:
    """Return the linearly interpolated quantile, []; torch.quantile refuses more than 16 million values."""
    last = values.shape[0] - 1
    place = min(q * last, last)
    left = int(place)
    below = values.kthvalue(left + 1).values  # selection is several times as fast as sorting millions
    if place == left:
        return below
    return torch.lerp(below, values.kthvalue(left + 2).values, place - left)


def nearest_quantile(values: Tensor, q: float) -> Tensor:
    """Return the value nearest to the quantile, [], halves to even as torch's "nearest" does."""
    return values.kthvalue(1 + round(q * (values.shape[0] - 1))).values


# -- completion -----------------------------------------------------------------------------------------------------


def completion_sum(values: Tensor, batch: TokenBatch) -> Tensor:
    """Return the sum of each completion's tokens that count, [S]."""
    return batch.per_sequence_sum(torch.where(counts_of(batch), values, torch.zeros_like(values)))


def completion_tokens(batch: TokenBatch) -> Tensor:
    """Return how many tokens of each completion count, [S], in the dtype of the log-probs."""
    return batch.per_sequence_sum(counts_of(batch).to(batch.logprob.dtype))


def completion_mean(values: Tensor, batch: TokenBatch) -> Tensor:
    """Return the mean of each completion's tokens that count, [S]; 0 for a completion without any."""
    return completion_sum(values, batch) / completion_tokens(batch).clamp(min=1)


def completion_rank(values: Tensor, batch: TokenBatch) -> Tensor:
    """Return the ascending rank of each token among those of its completion that count, [N] from 0; -1 for others."""
    tokens = torch.bincount(batch.sequence, minlength=batch.sequences)
    if not values.shape[0]:
        return torch.zeros_like(batch.sequence)
    place = torch.arange(len(values), device=values.device) - (tokens.cumsum(0) - tokens)[batch.sequence]
    cell = batch.sequence, place
    # rows sorted side by side are several times as fast as one sort of millions
    rows = values.new_full((batch.sequences, int(tokens.max())), torch.inf)
    rows[cell] = torch.where(counts_of(batch), values.detach(), torch.inf)  # those that do not count come last
    order = rows.argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(rows.shape[1], device=rows.device).expand_as(order))
    return torch.where(counts_of(batch), rank[cell], -1)


def completion_ranked(values: Tensor, rank: Tensor, batch: TokenBatch, wanted: Tensor) -> Tensor:
    """Return the value of each completion's token with the wanted rank [S] (see `completion_rank`); 0 without one."""
    hit = counts_of(batch) & (rank == batch.per_token(wanted))
    return batch.per_sequence_sum(torch.where(hit, values, torch.zeros_like(values)))


def completion_quantile(values: Tensor, batch: TokenBatch, q: float, *, rank: Tensor | None = None) -> Tensor:
    """Return each completion's linearly interpolated quantile over its tokens that count, [S]; 0 where none does.

    `rank` is `completion_rank(values, batch)` where the caller has it, for several quantiles at the price of one.
    """
    number, rank = completion_tokens(batch).long(), completion_rank(values, batch) if rank is None else rank
    place = q * (number - 1).clamp(min=0).to(values.dtype)
    left = place.floor().long()
    right = torch.minimum(left + 1, (number - 1).clamp(min=0))
    below, above = (completion_ranked(values, rank, batch, wanted) for wanted in (left, right))
    return torch.lerp(below, above, place - left.to(values.dtype))


def sequence_advantage(batch: TokenBatch) -> Tensor:
    """Return the mean token advantage of each completion over all its tokens, [S]."""
    advantage = batch.need("advantage")
    tokens = batch.per_sequence_sum(torch.ones_like(advantage)).clamp(min=1)
    return batch.per_sequence_sum(advantage) / tokens


# -- group ----------------------------------------------------------------------------------------------------------


def group_sum(values: Tensor, batch: TokenBatch) -> Tensor:
    """Return for each completion the sum over the valid completions of its group, [S]."""
    dense, count = groups_of(batch)
    kept = torch.where(valid_of(batch), values, torch.zeros_like(values))
    return values.new_zeros(count).index_add(0, dense, kept)[dense]


def group_size(batch: TokenBatch) -> Tensor:
    """Return how many valid completions each completion's group has, [S], in the dtype of the rewards."""
    return group_sum(torch.ones_like(batch.reward), batch)


def group_mean(values: Tensor, batch: TokenBatch) -> Tensor:
    """Return for each completion the mean over the valid completions of its group, [S]."""
    return group_sum(values, batch) / group_size(batch).clamp(min=1)


def group_extreme(values: Tensor, batch: TokenBatch, *, largest: bool) -> Tensor:
    """Return for each completion the largest or smallest value among its group's valid completions, [S]."""
    dense, count = groups_of(batch)
    bound = -torch.inf if largest else torch.inf
    kept = torch.where(valid_of(batch), values, bound)
    found = values.new_full((count,), bound).scatter_reduce(0, dense, kept, "amax" if largest else "amin")
    return found[dense]


def group_rank(values: Tensor, batch: TokenBatch) -> Tensor:
    """Return the ascending rank of each completion among the valid ones of its group, [S] from 0; -1 for others.

    Equal values rank in the order of the rows.
    """
    dense, _ = groups_of(batch)
    valid, size = valid_of(batch), values.shape[0]
    order = torch.argsort(torch.where(valid, values, torch.inf), stable=True)
    order = order[torch.argsort(dense[order], stable=True)]  # by group, then by value; invalid ones last
    place = torch.arange(size, device=values.device)
    ordered = dense[order]
    first = torch.ones(size, dtype=torch.bool, device=values.device)
    first[1:] = ordered[1:] != ordered[:-1]
    start = torch.where(first, place, 0).cummax(0).values if size else place
    rank = torch.empty_like(place)
    rank[order] = place - start
    return torch.where(valid, rank, -1)


def group_token_mean(values: Tensor, batch: TokenBatch) -> Tensor:
    """Return for each token the mean over the tokens of its group that count, [N]; 0 in a group without any."""
    dense, count = groups_of(batch)
    owner, counts = dense[batch.sequence], counts_of(batch)
    total = values.new_zeros(count).index_add(0, owner, torch.where(counts, values, torch.zeros_like(values)))
    number = values.new_zeros(count).index_add(0, owner, counts.to(values.dtype))
    return (total / number.clamp(min=1))[owner]


def equal_rewards(batch: TokenBatch) -> Tensor:
    """Return which completions are in a group with one reward throughout, [S] bool; unusable ones do not count.

    A group of one is not among them: with mean 0 its reward is its advantage.
    """
    dense, count = groups_of(batch)
    low, high = (group_extreme(batch.reward, batch, largest=largest) for largest in (False, True))
    size = torch.bincount(dense, minlength=count)[dense]
    return (low >= high) & (size > 1)
