"""A step's rollouts of a preset, collected by any engine without training: what was asked for, said and picked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.runs import ROOT, small
from trainer.collect import Collector
from trainer.completion import Completion
from trainer.config import ModelConfig, RunConfig
from trainer.distributed import World
from trainer.objectives import Objective, Step
from trainer.objectives.registry import PARTS, PRESETS
from trainer.policy import Policy
from trainer.prompts import Prompts
from trainer.rewards.pool import RewardPool
from trainer.rollout import Engine, Generation, GenRequest
from trainer.stream import Silent

PLANS = frozenset({"prompting", "rollout", "decoding", "sampling"})  # stages that say what is generated, and how
MEAN, MOST = 1e-5, 1e-4  # nats; 3e-5 at most was seen over 300 seeds
LLAMA = "builtin:countdown-tiny-llama"
LONGEST = 112  # tokens of a prompt: templates are long, and the model takes 128 in all
# What a preset needs to show what it does with a tiny model of single-character tokens, and samples of each prompt.
FITTED: dict[str, tuple[dict[str, Any], int]] = {
    "dapo-dynamic": ({"type": "dynamic_sampling", "max_waves": 3}, 4),
    "dars-et": ({"type": "adaptive_sampling", "max_samples": 10}, 4),
    "dars-hw": ({"type": "adaptive_sampling", "max_samples": 12, "schedule": "hard"}, 4),
    "prompt-augmentation": ({"type": "prompt_augmentation", "names": ["plain", "boxed", "dialogue"]}, 4),
    "cure": ({"type": "cure", "min_characters": 1}, 8),
    "ettrl": ({"type": "etmr"}, 10),
    "treerl": ({"type": "eptree", "rounds": 2, "continuations": 1}, 5),
    "echo-rollout": (
        {
            "type": "echo_rollout", "roots": 3, "min_depth": 1, "entropy_low": 0.1, "entropy_high": 0.5, "rise": -5.0,
            "rise_limit": 0.6, "rise_steps": 1, "entropy_window": 1, "branch_confidence": 6.0,
        },
        8,
    ),
    "cuts": ({"type": "cuts", "warm_up": 1}, 4),
    "mixed-cuts": ({"type": "cuts", "warm_up": 1, "share": 0.5}, 4),
    "vocabulary-dropout": ({"type": "vocabulary_dropout", "keep": 0.6, "anew": "sample"}, 4),
    "rose-entropy": ({"type": "rose", "epsilon": 0.2}, 4),
}  # fmt: skip
HAPO = {"hapo_temperature": {"pivot": -0.5, "spread": 1.0, "highest": 1.2, "lowest": -3.0}}  # as after a step


def planning() -> list[str]:
    """Return the presets with a part that says what is generated or how."""
    return [name for name, one in PRESETS.items() if PLANS & {PARTS[part["type"]].stage for part in one.parts}]


def config_of(preset: str, **changes: Any) -> RunConfig:
    """Return a small config of a preset over the tiny Llama."""
    part, samples = FITTED.get(preset, (None, 4))
    sampling = {
        "prompts_per_step": 4, "samples_per_prompt": samples, "max_completion_tokens": 12, "max_prompt_tokens": LONGEST
    }  # fmt: skip
    objective = {"preset": preset, "parts": [part] if part else []}
    return small(
        **{"model": {"source": LLAMA}, "objective": objective}
        | changes
        | {"sampling": sampling | changes.get("sampling", {})}
    )


def tiny_llama() -> Policy:
    """Return the built-in Llama, whose attention vLLM has on a CPU."""
    torch.set_num_threads(1)
    found = Policy(ROOT / "trainer/builtin/countdown-tiny-llama", ModelConfig(), torch.device("cpu"))
    found.budget = 4096
    return found


class Listening:
    """An engine that remembers what it was asked and what it said, wave by wave."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.caps = engine, engine.caps
        self.waves: list[tuple[list[GenRequest], list[Generation]]] = []

    def run(self, requests: Sequence[GenRequest], *hearers: Any) -> list[Generation]:
        found = self.engine.run(requests, *hearers)
        self.waves.append((list(requests), found))
        return found


@dataclass
class Collected:
    """One step."""

    waves: list[tuple[list[GenRequest], list[Generation]]]
    completions: list[Completion]
    figures: dict[str, float] = field(default_factory=dict)


def collect(config: RunConfig, policy: Policy, engine: Engine, *, moments: bool = True) -> Collected:
    """Return the rollouts of a run's second step."""
    objective, listening, figures = Objective(config.objective), Listening(engine), dict[str, float]()
    knobs = {"temperature": config.sampling.temperature} | {name: one.value for name, one in objective.knobs().items()}
    step = Step(
        knobs, step=2, seed=config.seed, max_completion_tokens=config.sampling.max_completion_tokens,
        vocabulary=policy.vocabulary, memory=HAPO,
    )  # fmt: skip
    with RewardPool(config.task, config.rewards) as pool:
        prompts = Prompts(config, policy.tokenizer, policy.context)
        collector = Collector(
            config, prompts, listening, pool, policy.detokenizer, Silent(), World(cpu=True), objective,  # type: ignore[arg-type]
        )  # fmt: skip
        collector.special |= policy.stop_ids
        completions = collector.collect(step, 1, {}, figures, moments=moments)
    return Collected(listening.waves, completions, figures)


def alike(found: Collected, expected: Collected, *, mean: float = MEAN, most: float = MOST) -> None:
    """Assert that two engines were asked the same, said the same, and that the same was picked and counted.

    Tokens, trees and picks are equal; numbers differ by so many nats at most, and on average.
    """
    for (asked, said), (other, told) in zip(found.waves, expected.waves, strict=True):
        for mine, theirs in zip(asked, other, strict=True):
            assert replace(mine, given_logprob=()) == replace(theirs, given_logprob=())
            near(mine.given_logprob, theirs.given_logprob, most)
        for one, two in zip(said, told, strict=True):
            same_generation(one, two, most)
    for one, two in zip(found.completions, expected.completions, strict=True):
        same_completion(one, two, most)
    near(found.figures, expected.figures, most)
    for name in ("logprob", "entropy"):
        mine, theirs = (numbers(made, name) for made in (found, expected))
        assert float((mine - theirs).abs().mean()) <= mean


def numbers(made: Collected, name: str) -> Tensor:
    """Return a statistic of every token that was generated."""
    said = [value for _, generations in made.waves for one in generations for value in getattr(one, name)]
    return torch.tensor(said, dtype=torch.float64)


def same_generation(one: Generation, two: Generation, most: float) -> None:
    exact = ("id", "ids", "finish_reason", "estimator", "top_ids")
    assert [getattr(one, name) for name in exact] == [getattr(two, name) for name in exact]
    for name in ("logprob", "entropy", "behaviour", "low", "high"):
        near(getattr(one, name), getattr(two, name), most)
    for mine, theirs in zip(one.top_logprob, two.top_logprob, strict=True):
        near(mine, theirs, most)
    assert one.moments.keys() == two.moments.keys()
    for name, values in one.moments.items():
        near(values, two.moments[name], most)


def same_completion(one: Completion, two: Completion, most: float) -> None:
    numbers = {"engine_logprob": [], "engine_entropy": [], "engine_moments": {}}
    assert replace(one, **numbers, version=0) == replace(two, **numbers, version=0)  # type: ignore[arg-type]
    near(one.engine_logprob, two.engine_logprob, most)
    near(one.engine_entropy, two.engine_entropy, most)
    assert len(one.engine_entropy) == len(one.tokens.completion)
    assert one.engine_moments.keys() == two.engine_moments.keys()
    for name, values in one.engine_moments.items():
        assert len(values) == len(one.tokens.completion)
        near(values, two.engine_moments[name], most)


def near(found: Any, expected: Any, most: float) -> None:
    assert found == pytest.approx(expected, rel=0, abs=most)
