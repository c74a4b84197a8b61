"""Packing, and prompts run once for a whole group: same states, same gradients."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from trainer.rectangles import Trajectory, pack, shared_states, whole_states

FLOAT32 = 1e-5  # Llama's norms and rotations compute in float32 whatever the weights are
CPU = torch.device("cpu")
LLAMA = LlamaConfig(
    vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64)


def model(config) -> torch.nn.Module:
    """Return a random decoder in float64."""
    return AutoModelForCausalLM.from_config(config).eval().double().base_model


def trajectories(dice: random.Random, groups: int = 4, samples: int = 5) -> list[Trajectory]:
    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(dice.randrange(3, 40) for _ in range(dice.randint(low, high)))

    return [Trajectory(prompt, ids(1, 9)) for prompt in (ids(1, 12) for _ in range(groups)) for _ in range(samples)]


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_shared_prompts_change_neither_states_nor_gradients(config, dice):
    decoder, rows = model(config), trajectories(dice)
    dice.shuffle(rows)
    found = []
    for states in (whole_states, shared_states):
        decoder.zero_grad()
        hidden = states(decoder, rows, CPU)
        assert hidden.shape == (sum(len(row.completion) for row in rows), 16)
        (hidden.sin() * torch.arange(len(hidden))[:, None]).sum().backward()
        found.append((hidden.detach(), [p.grad.clone() for p in decoder.parameters() if p.grad is not None]))
    (states, gradients), (others, theirs) = found
    torch.testing.assert_close(states, others, rtol=0, atol=FLOAT32 * float(others.abs().max()))
    for one, other in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=FLOAT32 * max(1.0, float(other.abs().max())))


def test_completions_of_one_token_need_the_prompt_only(dice):
    decoder, rows = model(LLAMA), [Trajectory((5, 6, 7), (8,)), Trajectory((5, 6), (9,))]
    torch.testing.assert_close(shared_states(decoder, rows, CPU), whole_states(decoder, rows, CPU))


@pytest.mark.parametrize("shared", [False, True])
def test_rectangles_stay_within_the_budget_and_lose_nobody(dice, shared):
    rows, budget = trajectories(dice, 20), 64
    groups = pack(rows, range(len(rows)), budget, shared=shared)
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    for group in groups:
        chosen = [rows[index] for index in group]
        if shared:
            prompts = {row.prompt for row in chosen}
            size = len(chosen) * max(len(row.completion) for row in chosen) + len(prompts) * max(map(len, prompts))
        else:
            size = len(chosen) * max(len(row) for row in chosen)
        assert size <= budget or len(chosen) == 1


def test_sharing_packs_more_completions_of_one_prompt():
    rows = [Trajectory(tuple(range(50)), (1, 2)) for _ in range(20)]
    assert len(pack(rows, range(20), 100, shared=True)) == 1
    assert len(pack(rows, range(20), 100, shared=False)) == 20


def test_rectangles_are_cut_where_lengths_change():
    lengths = [100] * 3 + [10] * 30
    rows = [Trajectory((1,), (2,) * length) for length in lengths]
    groups = pack(rows, range(len(rows)), 1000, shared=False)
    assert sorted(len({lengths[i] for i in group}) for group in groups) == [1, 1]
