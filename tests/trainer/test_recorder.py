"""Rollout files of forks: every token is there, context is told apart, and what-if leaves it out again."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.trainer.gradients import Recording as Optimiser
from tests.trainer.gradients import completions, config, models
from trainer.completion import Completion
from trainer.distributed import World
from trainer.objectives import Objective, Step
from trainer.policy import Trajectory
from trainer.record_rows import Rows, segments
from trainer.recorder import FLAG_CONTEXT, FLAG_INVALID, FLAG_SAMPLED, _table, describe, write
from trainer.update import Update, Updater
from trainer.whatif import effect, packed, read
from trainer.whatif import row as figures

IDS = tuple(range(3, 13))
STEP = Step(knobs={}, step=4, total_steps=10, seed=1, max_completion_tokens=10)


@pytest.fixture(scope="module")
def pair():
    torch.set_num_threads(1)
    return models(World(cpu=True))


def forks(policy, seed: int) -> list[Completion]:
    """Return a group: a root, two forks off it, a fork off a fork, and one a tool spoke into."""
    dice, made = random.Random(seed), completions(policy, seed)[:5]
    beginnings = [(None, 0), (0, 3), (0, 6), (1, 5), (None, 0)]
    ids: list[tuple[int, ...]] = []
    for index, (completion, (parent, at)) in enumerate(zip(made, beginnings, strict=True)):
        start = ids[parent][:at] if parent is not None else ()
        ids.append(start + tuple(dice.choices(range(3, policy.vocabulary), k=10 - at)))
        counts = (False,) * at + (True,) * (10 - at) if at else ()
        if index == 4:
            counts = (True,) * 4 + (False,) * 3 + (True,) * 3
        completion.index, completion.group, completion.sample = index, 0, index
        completion.parent, completion.fork_at = parent, at if parent is not None else None
        completion.tokens = Trajectory(made[0].tokens.prompt, ids[-1], counts)
        completion.engine_logprob = [-float(index) - place for place in range(10)]
        completion.engine_entropy = [100.0 * index + place for place in range(10)]
        completion.text, completion.offsets = policy.detokenizer.decode(ids[-1])
        completion.version, completion.template = 3, "terse" if index else ""
    return made


def updated(pair, made: list[Completion], preset: str = "grpo", *, sampled: bool = False) -> Update:
    policy, reference = pair
    policy.budget = 1 << 20
    objective = Objective(config(preset).objective)
    updater = Updater(policy, reference, objective, Optimiser(policy.parameters, World(cpu=True)), World(cpu=True))
    before = [parameter.detach().clone() for parameter in policy.parameters]
    found = updater.update(made, Step(**vars(STEP)), 1, 1.0, {}, sampled=sampled)
    with torch.no_grad():
        for parameter, value in zip(policy.parameters, before, strict=True):
            parameter.copy_(value)
    return found


def table(made: list[Completion], update: Update, preset: str = "grpo") -> pa.Table:
    facts = {**describe(config(preset), STEP), "prompts": 1, "minibatches": 1, "completions": len(made)}
    return _table(Rows(made, update), facts)


@pytest.fixture(scope="module")
def recorded(pair):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    made = forks(pair[0], seed)
    return made, updated(pair, made)


def test_a_fork_names_its_parents_row_and_repeats_what_was_recorded_of_it(recorded):
    made, update = recorded
    order = [made[i] for i in (4, 2, 0, 3, 1)]
    rows = table(order, update).to_pylist()
    assert [row["branch_parent"] for row in rows] == [None, 2, None, 4, 2]
    assert [row["branch_token"] for row in rows] == [None, 6, None, 5, 3]
    root, fork, second = rows[2], rows[4], rows[3]
    for name in ("entropy", "logprob", "engine_logprob"):
        assert fork[name][:3] == root[name][:3], name
        assert second[name][:3] == root[name][:3], name  # of the parent's parent
        assert second[name][3:5] == fork[name][3:5], name
        assert [len(row[name]) for row in rows] == [10] * 5
    assert fork["logprob"][3:] == pytest.approx(update.batch.old_logprob[update.batch.sequence == 1].tolist(), abs=1e-6)
    assert [row["version"] for row in rows] == [3] * 5
    assert [row["template"] for row in rows] == ["terse", "terse", None, "terse", "terse"]


def test_context_has_a_flag_and_no_weight(recorded):
    made, update = recorded
    rows = table(made, update).to_pylist()
    for completion, row in zip(made, rows, strict=True):
        counts = completion.tokens.counts or (True,) * 10
        assert [not flag & FLAG_CONTEXT for flag in row["flags"]] == list(counts)
        assert all(weight == 0 for weight, counted in zip(row["weight"], counts, strict=True) if not counted)
        assert {bool(flag & FLAG_INVALID) for flag in row["flags"]} == {completion.scored.reward is None}
        assert not any(flag & FLAG_SAMPLED for flag in row["flags"])
        own = [weight for weight, counted in zip(row["weight"], counts, strict=True) if counted]
        assert row["advantage"] == pytest.approx(np.mean(own), abs=2e-3)
    spoken = rows[4]
    assert spoken["logprob"][4:7] == [-8.0, -9.0, -10.0]  # nobody's child: what sampling said
    assert spoken["entropy"][4:7] == [404.0, 405.0, 406.0]


def test_a_parent_that_is_not_recorded_leaves_what_sampling_said(recorded):
    made, update = recorded
    row = table(made[1:2], update).to_pylist()[0]
    assert row["branch_parent"] is None
    assert row["branch_token"] == 3
    assert row["entropy"][:3] == [100.0, 101.0, 102.0]


def test_segments_say_who_said_what(recorded):
    made, update = recorded
    rows = table(made, update).to_pylist()
    told = [[(part["kind"], part["first"], part["count"]) for part in row["segments"]] for row in rows]
    assert told[0] == [("model", 0, 10)]
    assert told[1] == [("prefix", 0, 3), ("model", 3, 7)]
    assert told[4] == [("model", 0, 4), ("tool", 4, 3), ("model", 7, 3)]


def test_a_prefix_that_counts_is_a_prefix_still(recorded):
    made = recorded[0]
    counted = Completion(**{**vars(made[1]), "tokens": Trajectory((1,), IDS)})
    assert [part["kind"] for part in segments(counted)] == ["prefix", "model"]
    silent = Completion(**{**vars(made[0]), "tokens": Trajectory((1,), IDS, (False,) * 2 + (True,) * 8)})
    assert segments(silent)[0] == {"kind": "prefix", "first": 0, "count": 2}
    empty = Completion(**{**vars(made[0]), "tokens": Trajectory((1,), ())})
    assert segments(empty) == []


@pytest.mark.parametrize("preset", ["grpo", "clip-cov", "entropy-bonus"])
def test_what_if_applies_objectives_to_the_tokens_that_count(pair, recorded, tmp_path, preset):
    made = recorded[0]
    update = updated(pair, made, preset)
    path = tmp_path / "step-00000004.parquet"
    write(table(made, update, preset), path)
    found = read(path)
    assert found.batch.tokens == update.batch.tokens
    for name in ("sequence", "position", "length"):
        assert torch.equal(getattr(found.batch, name), getattr(update.batch, name)), name
    torch.testing.assert_close(found.batch.old_entropy, update.batch.old_entropy, rtol=1e-5, atol=1e-6)
    objective = config(preset).objective
    again = effect(found, objective, found.step.knobs)
    torch.testing.assert_close(again.weight, update.weight, rtol=2e-3, atol=1e-5)
    data = packed(found, again, figures(found, objective, done=again))
    assert data.count(b'"length":50') == 4  # over all tokens, as the rollout bundle has them
    wide = found.spread(again.weight)
    context = torch.tensor([not flag for c in made for flag in c.tokens.counts or (True,) * 10])
    assert len(wide) == 50
    assert not bool(wide[context].any())
    assert torch.equal(wide[~context], again.weight)


def test_what_if_knows_parents_by_row(recorded, tmp_path):
    made, update = recorded
    path = tmp_path / "step-00000004.parquet"
    write(table(made, update), path)
    texts = read(path)._texts
    assert [(c.parent, c.fork_at) for c in texts] == [(c.parent, c.fork_at) for c in made]
    assert [c.tokens.learned for c in texts] == [c.tokens.learned for c in made]


def test_an_interval_is_recorded_where_sampling_gave_no_more(pair, recorded):
    made = [Completion(**vars(completion)) for completion in recorded[0]]
    for completion in made:
        low, high = ([value + shift for value in completion.engine_entropy] for shift in (-0.25, 0.25))
        completion.engine_moments = {"entropy_low": low, "entropy_high": high}
    scored = table(made, updated(pair, made))
    assert b'"entropy_estimator": "exact"' in scored.schema.metadata[b"isentrope"]  # the trainer's own
    sampled = table(made, updated(pair, made, sampled=True))
    assert b'"entropy_estimator": "bounds"' in sampled.schema.metadata[b"isentrope"]
    for name in ("entropy_low", "entropy_high"):
        assert sampled.column(name).to_pylist()[1] == made[1].engine_moments[name]
    assert "entropy_low" not in table(recorded[0], recorded[1]).column_names
