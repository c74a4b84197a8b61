"""Every family of models decodes right, with slots where those serve it and otherwise with what does."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers

from tests.trainer.rollout.naive import decode, requests, same, stand_in
from trainer.rollout.fallbacks import Waves, Whole
from trainer.rollout.hf import HfEngine
from trainer.rollout.slots import Slots, reach

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip


def model(family: str, **changes: Any) -> Any:
    torch.manual_seed(random.getrandbits(32))
    sizes = {name: value for name, value in {**SIZES, **changes}.items() if value is not None}
    config = getattr(transformers, f"{family}Config")(**sizes, attn_implementation="sdpa")
    lm = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in lm.parameters():  # random enough that a wrong state shows in the tokens
        if parameter.ndim == 2:
            parameter.data *= 4
    return stand_in(lm)


@torch.no_grad()
def kinds(policy: Any, engine: HfEngine, asked: list[Any]) -> type:
    return engine._kind(max(len(request.prompt_ids) + request.max_new for request in asked))


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("Llama", {}, Slots),
        ("Qwen2", {}, Slots),
        ("Qwen3", {}, Slots),
        ("Mistral", {"sliding_window": 5}, Waves),
        ("Mistral", {"sliding_window": 100}, Slots),
        ("Gemma3Text", {"sliding_window": 5}, Waves),
        ("Gemma3Text", {"sliding_window": 100, "sliding_window_pattern": 2}, Slots),
        ("Phi3", {"sliding_window": 6, "num_key_value_heads": 4}, Waves),
        ("GPTNeoX", {}, Slots),
        ("OPT", {"word_embed_proj_dim": 32, "ffn_dim": 48}, None),
        ("Falcon", {"alibi": True, "new_decoder_architecture": False, "multi_query": False, "head_dim": None}, None),
        ("Lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, None),
    ],
    ids=str,
)
def test_a_family_of_models_decodes_as_one_at_a_time_without_a_cache(family, changes, expected):
    policy = model(family, **changes)
    asked = requests(policy, 5, each=2, longest=16)
    engine = HfEngine(policy)
    engine.rows = 4
    assert expected in (None, kinds(policy, engine, asked))
    same(engine.run(asked), [decode(policy, request) for request in asked], 2e-5)


@pytest.mark.parametrize("kind", [Slots, Waves, Whole])
def test_all_kinds_of_rows_agree(kind):
    policy = model("Llama")
    engine = HfEngine(policy)
    engine.rows, engine._kinds = random.randrange(1, 6), [kind]
    asked = requests(policy, 5, each=2, longest=16)
    same(engine.run(asked), [decode(policy, request) for request in asked])


def test_a_long_prompt_and_many_short_ones_run_in_passes_of_bounded_size(monkeypatch):
    monkeypatch.setattr("trainer.rollout.slots.PREFILL_TOKENS", 20)
    policy = model("Llama")
    asked = requests(policy, 9, each=1, longest=12)
    asked.append(requests(policy, 1, each=1)[0].__class__(9, 9, 0, tuple(random.choices(range(40), k=33)), 5, 7))
    passes: list[int] = []
    plain = policy.hidden
    policy.hidden = lambda ids, **extra: passes.append(ids.numel()) or plain(ids, **extra)
    found = HfEngine(policy).run(asked)
    assert max(passes) == 33
    assert sorted(passes)[-2] <= 20
    policy.hidden = plain
    same(found, [decode(policy, request) for request in asked])


def test_a_window_limits_what_slots_serve():
    assert reach(model("Gemma3Text", sliding_window=6).lm.config) < 10
    assert reach(model("Qwen3").lm.config) > 10**6
