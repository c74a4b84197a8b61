"""One step through the real passes: skipping the scoring pass and the ways through the head change nothing."""

from __future__ import annotations

import random

import pyarrow.parquet as pq
import pytest
import torch

from tests.trainer.gradients import Recording, completions, config, models
from tests.trainer.runs import events, make, metrics, small, train
from trainer.distributed import World
from trainer.objectives import Objective, Step
from trainer.passes import MOMENTS
from trainer.policy import Policy, Trajectory
from trainer.recorder import FLAG_SAMPLED
from trainer.update import Update, Updater

SMOOTH = {"epsilon": 1e-3}  # Adam divides by the gradient's size: without it, rounding noise becomes a full step


@pytest.fixture(scope="module")
def pair():
    torch.set_num_threads(1)
    return models(World(cpu=True))


def sampled(policy: Policy, seed: int):
    """Return completions whose engine statistics are the policy's own, as an exact engine gives them."""
    made = completions(policy, seed)
    found = policy.score([Trajectory(c.tokens.prompt, c.tokens.completion) for c in made], 1.0, names=MOMENTS)
    counts = [len(c.tokens.completion) for c in made]
    parts = {name: values.split(counts) for name, values in found.items()}
    for index, completion in enumerate(made):
        completion.engine_logprob = parts["logprob"][index].tolist()
        completion.engine_entropy = parts["entropy"][index].tolist()
        completion.engine_moments = {name: parts[name][index].tolist() for name in MOMENTS}
    return made


def step(pair, preset: str, seed: int, *, skip: bool) -> tuple[torch.Tensor, Update, dict[str, float]]:
    """Return the gradient of one update, what became of it, and its times; the weights are put back."""
    policy, reference = pair
    before = [parameter.detach().clone() for parameter in policy.parameters]
    policy.budget = reference.budget = 1 << 20
    world = World(cpu=True)
    objective, optimiser = Objective(config(preset).objective), Recording(policy.parameters, world)
    updater = Updater(policy, reference, objective, optimiser, world)  # type: ignore[arg-type]
    knobs = {name: knob.value for name, knob in objective.knobs().items()}
    now, times = Step(knobs=knobs, step=4, total_steps=10, seed=1, max_completion_tokens=10), dict[str, float]()
    made = sampled(policy, seed)
    policy.budget = 64
    update = updater.update(made, now, 1, 1.0, times, also=MOMENTS, sampled=skip)
    with torch.no_grad():
        for parameter, value in zip(policy.parameters, before, strict=True):
            parameter.copy_(value)
    return optimiser.seen[0], update, times


@pytest.mark.parametrize(
    "preset",
    ["grpo", "cispo", "gspo", "entropy-bonus", "top-entropy-mask", "clip-cov", "entropy-target", "entropy-polarity"],
)
def test_a_step_is_the_same_whether_it_is_scored_or_takes_what_sampling_said(pair, preset):
    seed = random.randrange(1 << 30)
    one, scored, took = step(pair, preset, seed, skip=False)
    other, skipped, saved = step(pair, preset, seed, skip=True)
    assert float((one - other).norm() / one.norm().clamp(min=1e-9)) < 1e-5, seed
    assert "score" in took
    assert "score" not in saved
    for name in ("old_logprob", "old_entropy", "sum_p2", "sum_p2_logp"):
        torch.testing.assert_close(getattr(skipped.batch, name), getattr(scored.batch, name), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(skipped.batch.extra["entropy_gain"], scored.batch.extra["entropy_gain"])


def test_the_pass_with_gradients_meets_the_policys_own_logprobs_where_it_runs_and_nothing_elsewhere(pair):
    seed = random.randrange(1 << 30)
    _, scored, _ = step(pair, "grpo", seed, skip=False)
    _, skipped, _ = step(pair, "grpo", seed, skip=True)
    assert scored.met is None
    live = skipped.weight != 0
    assert 0 < int(live.sum()) < len(live), seed  # some group has one reward throughout, or a completion has none
    torch.testing.assert_close(skipped.met[live], scored.batch.old_logprob[live], rtol=1e-5, atol=1e-6)
    assert bool(skipped.met[~live].isnan().all())


@pytest.mark.parametrize("contract", ["fused", "kept", "recompute"])
@pytest.mark.parametrize("room", ["reference", "chunked"])
@pytest.mark.parametrize("preset", ["entropy-bonus", "siren", "em-ft"])
def test_every_way_through_the_head_gives_the_same_gradient(pair, contract, room, preset):
    policy = pair[0]
    plain, _, _ = step(pair, preset, 7, skip=False)
    policy.output.use(contract, room)
    try:
        found, _, _ = step(pair, preset, 7, skip=False)
    finally:
        policy.output.use("auto", "auto")
    assert float((found - plain).norm() / plain.norm()) < 1e-6


def run(path, **changes):
    folder = make(path, small(**changes))
    assert train(folder)[0] == "finished"
    return folder


def test_a_run_that_skips_scoring_ends_with_the_weights_of_one_that_does_not(tmp_path):
    from safetensors.torch import load_file

    optimiser = {**SMOOTH, "steps": 3, "learning_rate": 1e-3}
    quiet = {"evaluation": {"every_steps": 0, "prompts": 1, "samples_per_prompt": 1, "greedy": False}}
    folders = [
        run(
            tmp_path / choice,
            optimiser={**optimiser, "old_logprobs": choice},
            objective={"preset": "entropy-target"},
            **quiet,
        )
        for choice in ("score", "engine")
    ]
    one, other = (load_file(folder.checkpoint(3) / "model.safetensors") for folder in folders)
    for name in one:
        assert float((one[name] - other[name]).norm() / one[name].norm().clamp(min=1e-9)) < 1e-5, name
    scored, skipped = (metrics(folder, timeless=False) for folder in folders)
    for number in (1, 2, 3):
        assert "time/score" in scored[number]
        assert "time/score" not in skipped[number]
        assert skipped[number]["entropy/mean"] == pytest.approx(scored[number]["entropy/mean"], abs=1e-5)
        assert 0 < skipped[number]["mismatch/mean_abs"] < 1e-4  # of tokens the trainer met, so not zero by construction
    plan = events(folders[1], "started")[0]["plan"]
    assert plan["old_logprobs"] == {"choice": "engine", "why": "set by optimiser.old_logprobs"}
    assert plan["head"]["choice"] == "fused"
    assert plan["kernel"]["choice"] == "chunked"
    flags = [pq.read_table(folder.rollout_file(1)).to_pylist()[0]["flags"][0] for folder in folders]
    assert [flag & FLAG_SAMPLED for flag in flags] == [0, FLAG_SAMPLED]


def test_a_step_that_met_nothing_has_no_mismatch(tmp_path, monkeypatch):
    from trainer.rewards.scoring import Scored

    monkeypatch.setattr("trainer.rewards.pool.score_sample", lambda *_: Scored(1.0, {"task": 1.0}))
    folder = run(tmp_path, optimiser={"steps": 1})
    assert metrics(folder)[1]["grad/norm"] == 0
    assert "mismatch/mean_abs" not in metrics(folder)[1]
    assert metrics(folder)[1]["entropy/mean"] > 0
