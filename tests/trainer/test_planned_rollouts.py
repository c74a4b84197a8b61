"""Runs whose rollouts a strategy plans: what is generated, recorded and learned from, resumed and shared out."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.trainer.gradients import completions, models
from tests.trainer.runs import events, make, metrics, small, start, train
from tests.trainer.test_checkpoint import same_weights, stop_before
from trainer.config import load
from trainer.distributed import World
from trainer.errors import ConfigError
from trainer.estimate import estimate
from trainer.memory.batch import Batch
from trainer.model_files import ModelInfo
from trainer.objectives import Objective, Step
from trainer.recorder import whole_groups
from trainer.scoring import Scorer

QUIET = {"evaluation": {"every_steps": 0, "prompts": 1, "samples_per_prompt": 1, "greedy": False}}


def planned(preset: str, *parts: dict, steps: int = 2, **changes):
    return small(
        **QUIET | {"objective": {"preset": preset, "parts": list(parts)}, "optimiser": {"steps": steps}} | changes
    )


def test_groups_that_fill_a_step_are_recorded_and_do_not_learn(tmp_path):
    """One wave of prompts that the tiny model mostly solves or fails: some groups have no difference."""
    wave = {"type": "dynamic_sampling", "max_waves": 1}
    penalty = {"type": "soft_overlong", "buffer": 1.0}  # differs within groups of equal answers, and still no gradient
    folder = make(tmp_path / "run", planned("dapo-dynamic", wave, penalty, steps=3))
    assert train(folder)[0] == "finished"
    filled = {step: values["rollout/filled"] for step, values in metrics(folder).items()}
    assert sum(filled.values()) > 0
    assert len([one for one in events(folder, "warning") if one["code"] == "rollout"]) == 1
    for step, number in filled.items():
        rows = pq.read_table(folder.rollout_file(step)).to_pylist()
        assert {row["group"] for row in rows} == {0, 1, 2, 3}
        assert len({row["group"] for row in rows if not row["learns"]}) == number
        for row in rows:
            group = [other["right"] for other in rows if other["group"] == row["group"]]
            assert row["learns"] == (len(set(group)) == 2)
            assert row["learns"] or not any(row["weight"])
            assert all(flag & 1 for flag in row["flags"]) != row["learns"]
        assert any(any(row["weight"]) for row in rows if row["learns"])


def test_a_step_without_any_difference_moves_nothing(tmp_path):
    """No completion is the number that the reference has, so every reward is 0."""
    hopeless = {"rewards": [{"type": "exact"}]}
    folder = make(tmp_path / "run", planned("dapo-dynamic", {"type": "dynamic_sampling", "max_waves": 2}, **hopeless))
    assert train(folder)[0] == "finished"
    for values in metrics(folder).values():
        assert values["rollout/filled"] == 4
        assert values["grad/norm"] == 0
        assert values["rollout/waves"] == 2
        assert "rollout/overhead" not in values  # there is nothing to divide by
        assert values["entropy/mean"] > 0  # measured all the same


def test_generated_tokens_count_whether_or_not_they_train(tmp_path):
    folder = make(tmp_path / "run", planned("t1", {"type": "oversampling", "factor": 3}, steps=2))
    train(folder)
    found = metrics(folder)
    for values in found.values():
        assert values["rollout/generated"] == 3 * 16
        assert values["rollout/overhead"] == pytest.approx(3, abs=0.5)
        assert values["reward/std"] > 0
        assert values["mismatch/mean_abs"] < 1e-4  # drawn hotter, told at the temperature of training
    assert found[2]["tokens/total"] > 2.5 * 2 * 16 * found[2]["length/mean"]


def test_adaptive_groups_differ_in_size_and_are_recorded_whole(tmp_path):
    recording = {"recording": {"max_samples": 20}}
    folder = make(tmp_path / "run", planned("dars-hw", {"type": "adaptive_sampling", "max_samples": 12}, **recording))
    train(folder)
    for step, values in metrics(folder).items():
        rows = pq.read_table(folder.rollout_file(step)).to_pylist()
        assert len(rows) <= 20
        for group in {row["group"] for row in rows}:
            members = [row for row in rows if row["group"] == group]
            assert [row["sample"] for row in members] == list(range(len(members)))
            first = [row["right"] for row in members[:4]]
            assert (len(members) > 4) == (sum(first) < 2)
        assert values["rollout/generated"] == 16 + 4 * values["rollout/extra_samples"]


@pytest.mark.parametrize(
    ("preset", "part"),
    [
        ("dapo-dynamic", {"type": "dynamic_sampling", "max_waves": 3, "refill": "missing"}),
        ("dars-et", {"type": "adaptive_sampling", "max_samples": 10}),
    ],
)
def test_stopping_and_resuming_draws_the_same(tmp_path, preset, part):
    changes = {"steps": 4, "checkpoint": {"every_steps": 2}}
    whole, parts = (make(tmp_path / name, planned(preset, part, **changes)) for name in ("whole", "parts"))
    train(whole)
    train(parts, prepare=lambda trainer: stop_before(trainer, 3))
    assert train(parts, attempt=2)[0] == "finished"
    assert metrics(whole) == metrics(parts)
    assert same_weights(whole, parts, 4)


def test_two_processes_take_the_same_steps_as_one(tmp_path):
    """Which groups stay is decided over all processes, although each knows the grades of its own alone."""
    optimiser = {"optimiser": {"steps": 2, "epsilon": 1e-3, "minibatches_per_step": 2}}
    one = make(tmp_path / "one", planned("dapo-dynamic", **optimiser))
    two = make(tmp_path / "two", planned("dapo-dynamic", **optimiser, resources={"processes": 2}))
    process = start(two)
    train(one)
    assert process.wait() == 0, two.log.read_text()
    ours, theirs = metrics(one), metrics(two)
    assert any(values["rollout/waves"] > 1 for values in ours.values())
    for step, values in ours.items():
        assert values.keys() == theirs[step].keys()
        for name, value in values.items():
            assert theirs[step][name] == pytest.approx(value, abs=1e-5, rel=1e-4), (step, name)
    a, b = (load_file(folder.checkpoint(2) / "model.safetensors") for folder in (one, two))
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-6


def test_what_a_strategy_generates_is_told_before_the_run():
    def cost(*parts, preset="grpo"):
        config = load({"objective": {"preset": preset, "parts": list(parts)}})
        return estimate(config, ModelInfo(source="x", kind="unread"), None), Batch.of(config).waiting

    plain, waiting = cost()
    assert (plain.generated_least, plain.generated_most, waiting) == (512, 512, 1024)  # 64 x 16 are evaluated at once
    found, waiting = cost({"type": "dynamic_sampling", "max_waves": 4})
    assert (found.completions_per_step, found.generated_least, found.generated_most) == (512, 512, 2048)
    assert found.max_tokens == 4 * plain.max_tokens
    assert waiting == 1024
    found, waiting = cost({"type": "adaptive_sampling", "max_samples": 64})
    assert (found.generated_least, found.generated_most, waiting) == (512, 2048, 2048)
    found, waiting = cost({"type": "oversampling", "factor": 5})
    assert (found.generated_least, found.generated_most, waiting) == (2560, 2560, 2560)


@pytest.mark.parametrize(
    ("config", "field", "says"),
    [
        ({"objective": {"preset": "dapo-dynamic"}, "sampling": {"samples_per_prompt": 1}},
         "sampling.samples_per_prompt", "take 2 or more"),
        ({"objective": {"preset": "dars-et"}, "sampling": {"samples_per_prompt": 32}},
         "sampling.samples_per_prompt", "raise max_samples"),
        ({"objective": {"preset": "aepo", "parts": [{"type": "oversampling"}]}}, "objective.parts", "side batch"),
        ({"objective": {"parts": [{"type": "prompt_augmentation", "names": ["rhyme"]}]}},
         "objective.parts.0.prompt_augmentation.names", "no template 'rhyme'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_the_fix(config, field, says):
    with pytest.raises(ConfigError, match=says) as found:
        load(config)
    assert found.value.field == field


def test_whole_groups_are_recorded_up_to_the_limit():
    assert whole_groups([{0: 4, 2: 9}, {1: 5}], 9) == {0, 1}
    assert whole_groups([{0: 4, 2: 9}, {1: 5}], 17) == {0, 1}
    assert whole_groups([{0: 4, 2: 9}, {1: 5}], 18) == {0, 1, 2}
    assert whole_groups([{0: 4}], 3) == {0}  # more than the limit, and better than nothing
    assert whole_groups([{}], 3) == set()


def test_a_completion_that_does_not_learn_gives_no_gradient():
    policy, reference = models(World(cpu=True))
    made = completions(policy)
    for one in made[:4]:
        one.learns = False
    batch, _ = Scorer(policy, reference, frozenset(), World(cpu=True)).start(made, 1.0, {})
    machine, step = Objective(planned("dapo-dynamic").objective), Step(max_completion_tokens=10)
    outcome = machine.apply(machine.prepare(batch, step), step)
    idle = batch.per_token(batch.group == 0)
    assert not outcome.grad_logprob[idle].any()
    assert outcome.grad_logprob[~idle].any()
    assert not outcome.mask[idle].any()
