"""Packed rows: what the plain way gives, for every kind of attention, from rows without padding."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.trainer.trajectories import CONFIGS, CPU, assert_same, causal_lm, passed, trajectories
from trainer.attention import BLOCK, PLANS, _allowed, _batches, _blocks, install
from trainer.packed import PackedRow, pack_rows, packed_states
from trainer.rectangles import Trajectory, shared_states, whole_states


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return random.Random(seed)


def ragged_reference(
    query, key, value, to_queries, to_keys, longest_query, longest_key, *, scale, window_size, enable_gqa
):
    """Compute what torch's varlen_attn documents, sequence by sequence: causal, aligned at the last key."""
    assert window_size == (-1, 0)
    found = []
    for q0, q1, k0, k1 in zip(to_queries, to_queries[1:], to_keys, to_keys[1:], strict=False):
        assert q1 - q0 <= longest_query
        assert k1 - k0 <= longest_key
        sees = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(int(k1 - k0 - (q1 - q0)))
        parts = (part.transpose(0, 1) for part in (query[q0:q1], key[k0:k1], value[k0:k1]))
        one = scaled_dot_product_attention(*parts, attn_mask=sees, scale=scale, enable_gqa=enable_gqa)
        found.append(one.transpose(0, 1))
    return torch.cat(found)


@pytest.fixture
def on_cpu(monkeypatch) -> None:
    """Let the kinds of attention that need CUDA run here: flash attention by its definition."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", ragged_reference)


def assert_packed_gives(wanted: list[torch.Tensor], decoder, rows: list[Trajectory], kind: str) -> None:
    """Compare states and gradients; torch differentiates flex attention on CUDA only, see test_forward.py."""
    states = partial(packed_states, plan=PLANS[kind])
    if kind == "flex":
        with torch.no_grad():
            assert_same([states(decoder, rows, CPU)], wanted[:1])
    else:
        assert_same(passed(decoder, rows, states), wanted)


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_shared_and_whole_give_the_same_states_and_gradients(name, kind, dice, on_cpu):
    lm, rows = causal_lm(CONFIGS[name]()), trajectories(dice)
    wanted = passed(lm.base_model, rows, whole_states)
    assert_same(passed(lm.base_model, rows, shared_states), wanted)
    install(lm)
    assert_packed_gives(wanted, lm.base_model, rows, kind)
    assert_same(passed(lm.base_model, rows, whole_states), wanted)  # other passes attend as before


@pytest.mark.parametrize("kind", PLANS)
def test_long_segments_are_cut_into_pieces_and_blocks(kind, dice, on_cpu):
    def ids(count: int) -> tuple[int, ...]:
        return tuple(dice.randrange(40) for _ in range(count))

    lm = causal_lm(CONFIGS["llama"]())
    prompt = ids(dice.randint(200, 400))
    rows = [Trajectory(prompt, ids(count)) for count in (dice.randint(260, 600), 129, 1)]
    rows.append(Trajectory(ids(7), ids(128)))
    wanted = passed(lm.base_model, rows, whole_states)
    install(lm)
    assert_packed_gives(wanted, lm.base_model, rows, kind)


def test_gradient_checkpointing_recomputes_the_same_attention(dice):
    lm, rows = causal_lm(CONFIGS["qwen3"]()), trajectories(dice)
    install(lm)
    states = partial(packed_states, plan=PLANS["tiles"])
    wanted = passed(lm.base_model, rows, states)
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in lm.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.training = True
    assert_same(passed(lm.base_model, rows, states), wanted, 1e-12)


def test_a_row_holds_each_prompt_once_and_no_padding(dice):
    rows = trajectories(dice)
    row = PackedRow.of(rows)
    prompts = {r.prompt for r in rows}
    assert len(row) == sum(map(len, prompts)) + sum(len(r.completion) - 1 for r in rows)
    assert len(row.predicts) == sum(len(r.completion) for r in rows)
    before = [token for r in rows for token in (r.prompt + r.completion)[len(r.prompt) - 1 : -1]]
    assert row.ids[row.predicts].tolist() == before
    places = [place for r in rows for place in range(len(r.prompt) - 1, len(r) - 1)]
    assert row.positions[row.predicts].tolist() == places


def test_attention_with_a_window_or_a_cap_is_refused(dice):
    lm = causal_lm(CONFIGS["qwen3"]())
    install(lm)
    lm.base_model.layers[0].self_attn.sliding_window = 4
    with pytest.raises(ValueError, match="sliding_window"):
        packed_states(lm.base_model, trajectories(dice), CPU, plan=PLANS["tiles"])


def test_blocks_name_every_pair_that_attends_and_full_ones_no_other(dice):
    def ids(count: int) -> tuple[int, ...]:
        return (3,) * count

    rows = [Trajectory((*ids(dice.randint(1, 500)), group), ids(dice.randint(1, 500))) for group in (1, 2, 2, 3)]
    rows += [Trajectory(rows[0].prompt, ids(dice.randint(1, 300))) for _ in range(3)]
    row = PackedRow.of(rows)
    number = -(-len(row) // BLOCK)
    sees = np.zeros((number * BLOCK,) * 2, bool)
    sees[: len(row), : len(row)] = _allowed(row.segments)
    blocks = sees.reshape(number, BLOCK, number, BLOCK)
    touched, full = _blocks(row.segments, len(row))
    assert not (blocks.any((1, 3)) & ~touched).any()
    assert not (full & ~blocks.all((1, 3))).any()
    assert not (full & ~touched).any()


def test_tiles_take_every_piece_once_and_cost_no_more_than_one_or_all(dice):
    count = np.array([dice.randint(1, 30) for _ in range(60)])
    keys = count + np.array([dice.choice([0, 5, 40]) for _ in range(60)])

    def cost(batches: list[np.ndarray], call: int) -> int:
        return sum(len(b) * count[b].max() * keys[b].max() + call for b in batches)

    for call in (0, 100, 10**7):
        batches = _batches(count, keys, call)
        assert sorted(np.concatenate(batches)) == list(range(60))
        assert cost(batches, call) <= cost([np.arange(60)], call)
        assert cost(batches, call) <= cost([np.array([i]) for i in range(60)], call)
    assert len(batches) == 1


def tokens(rows: list[Trajectory]) -> int:
    return sum(len(row.completion) for row in rows) + sum(len(prompt) for prompt in {row.prompt for row in rows})


def test_rows_stay_within_the_budget_lose_nobody_and_are_evenly_filled(dice):
    rows, budget = trajectories(dice, groups=40), 64
    groups = pack_rows(rows, range(len(rows)), budget)
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    sizes = [tokens([rows[i] for i in group]) for group in groups]
    assert max(sizes) <= budget
    assert len(groups) <= tokens(rows) / (budget - 9 - 12 - 12) + 1  # what splitting a group may waste
    assert pack_rows(rows, [], budget) == []


def test_a_completion_longer_than_the_budget_runs_alone(dice):
    rows = [Trajectory((1, 2), (3,) * length) for length in (50, 2, 50, 3)]
    groups = pack_rows(rows, range(4), 20)
    assert sorted(map(len, groups)) == [1, 1, 2]


def test_the_last_row_is_not_left_nearly_empty():
    rows = [Trajectory((i, 1), (2,) * 8) for i in range(11)]
    assert [len(group) for group in pack_rows(rows, range(11), 100)] == [6, 5]
