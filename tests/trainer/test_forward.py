"""The way completions go through a model: chosen by trying, stated with its reason."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, Gemma3TextConfig, LlamaConfig, MistralConfig

from tests.trainer.trajectories import CONFIGS, CPU, SIZES, assert_same, causal_lm, passed, trajectories
from trainer import attention
from trainer.forward import choose
from trainer.packed import PackedRow, packed_states
from trainer.rectangles import whole_states


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return random.Random(seed)


@pytest.mark.parametrize("name", CONFIGS)
def test_models_with_full_attention_run_packed(name, dice):
    lm, rows = causal_lm(CONFIGS[name]()), trajectories(dice)
    wanted = passed(lm.base_model, rows, whole_states)
    way = choose(lm, CPU, dtype="float32")
    assert way.name == "packed rows, tiles"
    assert "no padding" in way.why
    assert_same(passed(lm.base_model, rows, way.states), wanted)
    assert sorted(i for group in way.pack(rows, range(len(rows)), 50) for i in group) == list(range(len(rows)))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MistralConfig(**SIZES, sliding_window=4), "sliding window"),
        (Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4), "sliding attention layers"),
    ],
    ids=["mistral", "gemma3"],
)
def test_models_that_forget_run_every_prompt_with_its_completion(config, reason, dice):
    lm, rows = causal_lm(config), trajectories(dice)
    way = choose(lm, CPU, dtype="float32")
    assert way.name == "rectangles"
    assert reason in way.why
    assert lm.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert_same([way.states(lm.base_model, rows, CPU)], [whole_states(lm.base_model, rows, CPU)])


def test_attention_that_cannot_be_exchanged_falls_back_to_shared_rectangles():
    config = FalconConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    way = choose(lm, CPU, dtype="float32")
    assert way.name == "rectangles, prompts shared"
    assert "cannot be exchanged" in way.why
    assert choose(lm, CPU, dtype="float32", recomputes=True).name == "rectangles"


@pytest.mark.parametrize("failure", ["wrong", "broken"])
def test_attention_with_other_numbers_or_none_is_not_used(failure, monkeypatch):
    def plan(row: PackedRow, device: torch.device) -> attention.Attend:
        if failure == "broken":
            raise NotImplementedError("no such kernel")
        row.segments.prefix_count[:] = 0  # completions do not see their prompts
        return attention.mask_plan(row, device)

    monkeypatch.setitem(attention.PLANS, "tiles", plan)
    lm = causal_lm(LlamaConfig(**SIZES))
    way = choose(lm, CPU, dtype="float32")
    assert way.name == "rectangles, prompts shared"
    assert {"wrong": "other numbers", "broken": "NotImplementedError"}[failure] in way.why
    assert lm.config._attn_implementation == "sdpa"


def test_sampling_and_saving_do_not_notice(tmp_path):
    lm = causal_lm(LlamaConfig(**SIZES)).float()
    ids = torch.tensor([[5, 6, 7]])
    before = lm.generate(ids, max_new_tokens=8, do_sample=False)
    assert choose(lm, CPU, dtype="float32").name == "packed rows, tiles"
    assert torch.equal(lm.generate(ids, max_new_tokens=8, do_sample=False), before)
    lm.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.generate(ids, max_new_tokens=8, do_sample=False), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", ["varlen", "flex", "tiles"])
def test_every_attention_of_a_gpu_gives_the_plain_numbers(kind, dice):
    device = torch.device("cuda")
    dtype = torch.bfloat16 if kind == "varlen" else torch.float32
    config = LlamaConfig(**{**SIZES, "hidden_size": 256, "intermediate_size": 512}, head_dim=64)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device, dtype).eval()
    decoder = lm.base_model
    rows = [row for longest in (9, 300) for row in trajectories(dice, longest=longest)]
    attention.install(lm)
    found = []
    for states in (whole_states, partial(packed_states, plan=attention.PLANS[kind])):
        decoder.zero_grad()
        hidden = states(decoder, rows, device)
        hidden.float().sin().mean().backward()
        found.append([hidden.detach(), *(p.grad.clone() for p in decoder.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        assert (one - other).float().norm() <= (0.03 if kind == "varlen" else 1e-4) * other.float().norm()
