"""The memory planner: one model by hand, what raises the peak, hostile settings, and what is not known."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from trainer.config import RunConfig, load
from trainer.memory import LABELS, PHASES, advice, plan, room, unknown
from trainer.memory.plan import CPU_RUNTIME, CUDA_RUNTIME, MemoryPlan
from trainer.model_files import ModelInfo
from trainer.models import inspect

GIB = 1 << 30
# 2 layers of 8 units with 2 query heads and 1 key head of 4, a gated feed-forward part of 16, 100 tokens, tied.
PARAMETERS = 100 * 8 + 2 * (2 * 8 + 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16) + 8


def shape(**changes: Any) -> ModelInfo:
    fields = {
        "source": "test", "kind": "folder", "parameters": PARAMETERS, "vocabulary": 100, "layers": 2, "hidden_size": 8,
        "intermediate_size": 16, "heads": 2, "kv_heads": 1, "head_size": 4, "gated": True, "tied": True,
        "dtype": "float32", "bytes": 4 * PARAMETERS,
        "linear_sides": {"q_proj": 2 * 16, "v_proj": 2 * 12, "down_proj": 2 * 24},
    }  # fmt: skip
    return ModelInfo(**{**fields, **changes})


def settings(**sections: Any) -> RunConfig:
    base: dict[str, Any] = {
        "sampling": {
            "prompts_per_step": 2, "samples_per_prompt": 3, "max_prompt_tokens": 4, "max_completion_tokens": 6,
        },
        "evaluation": {"every_steps": 0},
    }  # fmt: skip
    for name, fields in sections.items():
        base[name] = {**base.get(name, {}), **fields}
    return load(base)


def planned(config: RunConfig, info: ModelInfo | None = None) -> MemoryPlan:
    found = plan(config, info or shape())
    assert found is not None
    return found


def parts(config: RunConfig, phase: str, info: ModelInfo | None = None) -> dict[str, int]:
    return next(found.parts for found in planned(config, info).phases if found.name == phase)


def test_one_model_by_hand() -> None:
    found = parts(settings(), "update")
    assert found["runtime"] == CPU_RUNTIME
    assert found["weights"] == 4 * PARAMETERS
    assert found["gradients"] == 4 * 100 * 8  # at the head of the only micro-batch: the head's, the others come later
    assert found["optimiser"] == 8 * PARAMETERS
    tokens = 2 * (4 + 3 * 6)  # each prompt once
    share = 36 / 44
    keys = share * (4 + 6) / 6 + (1 - share)  # a completion's keys are gathered with its prompt's
    scores = share * (4 + 6) + (1 - share) * 4
    norms, feed_forward, statistics = 2 * 3 * 8, 4 * 16, 2 + 2
    layer = 4 * (norms + 3 * 8 + int(2 * 4 * keys) + int(scores) + feed_forward + statistics)
    assert found["activations"] == tokens * (2 * layer + 4 * 3 * 8)
    assert found["head"] == 36 * 100 * 4 + 2 * 36 * 8 * 4  # logits, and the states with their gradient
    parted = parts(settings(optimiser={"tokens_per_microbatch": 20}), "update")
    assert parted["gradients"] == 4 * PARAMETERS  # in the second micro-batch they are all there
    cache = parts(settings(), "generate")["cache"]
    assert cache == 6 * 10 * 2 * 2 * 4 * 4  # rows, tokens, keys and values, layers, units, bytes


def test_the_peak_is_the_largest_phase_and_its_parts_add_up() -> None:
    found = planned(settings())
    assert found.peak_bytes == max(phase.bytes for phase in found.phases) == sum(found.peak.parts.values())
    assert found.peak.name == "update"
    assert {phase.name for phase in found.phases} == set(PHASES)
    assert {part for phase in found.phases for part in phase.parts} <= set(LABELS)


def test_adapters_train_few_weights_and_need_no_reference() -> None:
    lora = {"model": {"lora": {"enabled": True, "rank": 4}}}
    found = parts(settings(**lora), "update")
    trained = 4 * (32 + 24 + 48)
    assert found["optimiser"] == 8 * trained
    assert found["weights"] == 4 * (PARAMETERS + trained)
    lora["model"]["lora"]["target_modules"] = ["v_proj", "model.layers.0.q_proj"]
    assert parts(settings(**lora), "update")["optimiser"] == 8 * 4 * (32 + 24)
    compared = {"objective": {"preset": "one-shot-rlvr"}}
    assert "reference" not in parts(settings(**lora, **compared), "update")
    assert parts(settings(**compared), "update")["reference"] == 4 * PARAMETERS


def test_bfloat16_halves_weights_and_keeps_float32_copies() -> None:
    found = parts(settings(model={"dtype": "bfloat16"}), "update")
    assert (found["weights"], found["masters"]) == (2 * PARAMETERS, 4 * PARAMETERS)
    assert parts(settings(model={"dtype": "bfloat16"}), "load")["copies"] == 4 * PARAMETERS  # the file, read in float32


def test_shards_part_what_is_trained() -> None:
    processes, parted = {"processes": 2}, {"tokens_per_microbatch": 10}
    whole, sharded = (
        parts(settings(resources={**processes, "sharding": kind}, optimiser=parted), "update")
        for kind in ("none", "fsdp2")
    )
    assert sharded["optimiser"] == whole["optimiser"] // 2
    assert sharded["gradients"] == whole["gradients"] // 2


# What may only raise the peak, each with a lower and a higher value; 1 GPU, so that a micro-batch may hold everything.
RAISING = {
    "sampling.prompts_per_step": (4, 64),
    "sampling.samples_per_prompt": (2, 64),
    "sampling.max_completion_tokens": (16, 4000),
    "sampling.max_prompt_tokens": (16, 4000),
    "optimiser.tokens_per_microbatch": (1 << 12, 1 << 20),
    "optimiser.state_precision": ("8bit", "float32"),
    "model.gradient_checkpointing": (True, False),
    "resources.head_contract": ("fused", "kept"),
}
GROWING = ("parameters", "vocabulary", "layers", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_size")


@pytest.mark.parametrize("field", RAISING)
def test_the_peak_rises_with_every_setting_that_should_raise_it(field: str) -> None:
    section, _, name = field.partition(".")
    peaks = []
    for value in RAISING[field]:
        sections: dict[str, Any] = {
            "resources": {"gpus": 1},
            "optimiser": {"tokens_per_microbatch": 1 << 24},
            "sampling": {"prompts_per_step": 16, "samples_per_prompt": 64, "max_completion_tokens": 64},
        }
        sections[section] = {**sections.get(section, {}), name: value}
        peaks.append(planned(settings(**sections), shape(vocabulary=50_000)).peak_bytes)
    assert peaks[0] < peaks[1]


@pytest.mark.parametrize("field", GROWING)
def test_the_peak_rises_with_the_model(field: str) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    small = shape(**{name: rng.randrange(4, 4000) for name in GROWING})
    for device in ({"gpus": 1}, {"processes": 1}):
        config = settings(resources=device)
        low = planned(config, small).peak_bytes
        high = planned(config, small.model_copy(update={field: 3 * getattr(small, field)})).peak_bytes
        assert low <= high, f"seed {seed}"


def test_more_rows_never_lower_sampling_and_never_pass_their_budget() -> None:
    before = 0
    for samples in (1, 2, 7, 64, 1024):
        cache = parts(settings(sampling={"samples_per_prompt": samples}), "generate")["cache"]
        assert before <= cache <= 2 * GIB
        before = cache


def test_processes_of_a_machine_add_up_and_gpus_do_not() -> None:
    two = planned(settings(resources={"processes": 2}))
    assert two.machine_bytes == 2 * two.peak_bytes
    gpus = planned(settings(resources={"gpus": 2}))
    assert gpus.machine_bytes == gpus.peak_bytes
    assert gpus.seen_bytes == gpus.peak_bytes - CUDA_RUNTIME


def test_absurd_settings_neither_overflow_nor_hang() -> None:
    huge = {"prompts_per_step": 65536, "samples_per_prompt": 1024, "max_prompt_tokens": 10**6}
    config = settings(
        sampling={**huge, "max_completion_tokens": 10**6},
        optimiser={"tokens_per_microbatch": 10**30},
        resources={"gpus": 1024},
        model={"lora": {"enabled": True, "rank": 512}},
    )
    giant = shape(**dict.fromkeys(GROWING, 1 << 40), linear_sides={"q_proj": 1 << 40})
    began = time.process_time()
    for info in (shape(), giant):
        found = planned(config, info)
        assert found.peak_bytes > 0
        assert json.loads(found.model_dump_json())["phases"]
        assert advice(config, info)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("heads", "num_attention_heads"),
        ("intermediate_size", "intermediate_size"),
        ("layers", "num_hidden_layers"),
        ("vocabulary", "vocab_size"),
        ("parameters", "safetensors headers"),
    ],
)
def test_what_a_model_does_not_say_is_unknown_and_not_guessed(field: str, said: str) -> None:
    info = shape(**{field: 0})
    assert plan(settings(), info) is None
    assert said in unknown(info)
    assert advice(settings(), info) == []
    assert "mixture" in unknown(shape(experts=True))
    assert unknown(shape()) == ""


def test_advice_is_true_and_the_most_effective_comes_first() -> None:
    config, info = settings(model={"source": "builtin:smollm2-135m-instruct"}), inspect("builtin:smollm2-135m-instruct")
    found = advice(config, info)
    saved = [change.saved_bytes for change in found]
    assert found[0].field == "model.lora.enabled"
    assert saved == sorted(saved, reverse=True)
    lora = settings(model={"source": "builtin:smollm2-135m-instruct", "lora": {"enabled": True}})
    assert found[0].machine_bytes == planned(lora, info).machine_bytes
    assert all(change.machine_bytes + change.saved_bytes == planned(config, info).machine_bytes for change in found)


def test_a_container_s_limit_is_what_there_is(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    monkeypatch.setattr(room, "MEMINFO", meminfo)
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    assert room.available() == 5000 * 1024
    for name, text in {
        "memory.max": "3000000",
        "memory.current": "1000000",
        "memory.stat": "inactive_file 500",
    }.items():
        (tmp_path / name).write_text(text)
    assert room.available() == 2_000_500
    (tmp_path / "memory.max").write_text("max")
    assert room.available() == 5000 * 1024
