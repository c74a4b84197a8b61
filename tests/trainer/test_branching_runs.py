"""Branching rollouts with the real engine and graders: forks are what a policy would have said, groups are whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.trainer.runs import make, metrics, small, start, train
from tests.trainer.test_checkpoint import same_weights, stop_before
from trainer.completion import Completion
from trainer.config import RunConfig
from trainer.whatif import effect, own, read

RUNS: dict[str, tuple[dict[str, Any], int]] = {
    "cure": ({"type": "cure", "min_characters": 1}, 8),
    "ettrl": ({"type": "etmr"}, 10),
    "treerl": ({"type": "eptree", "rounds": 2, "continuations": 1}, 5),
    "echo-rollout": (
        {
            "type": "echo_rollout",
            "roots": 3,
            "min_depth": 1,
            "entropy_low": 0.1,
            "entropy_high": 0.5,
            "rise": -5.0,
            "rise_limit": 0.6,
            "rise_steps": 1,
            "entropy_window": 1,
            "branch_confidence": 6.0,
        },
        8,
    ),
    "rose-entropy": ({"type": "rose", "epsilon": 0.2}, 4),
}


def config_of(preset: str, **changes: Any) -> RunConfig:
    part, samples = RUNS[preset]
    return small(
        **{
            "objective": {"preset": preset, "parts": [part]},
            "sampling": {"prompts_per_step": 4, "samples_per_prompt": samples, "max_completion_tokens": 12},
            "optimiser": {"steps": 2, "warmup_steps": 0},
            "evaluation": {"every_steps": 0, "prompts": 1, "samples_per_prompt": 1, "greedy": False},
        }
        | changes
    )


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what two steps with a branching preset collected, and their metrics."""
    folder = make(tmp_path_factory.mktemp("runs") / request.param, config_of(request.param))
    steps: list[list[Completion]] = []
    scores: list[dict[str, torch.Tensor]] = []

    def watch(trainer: Any) -> None:
        assert trainer.policy.stop_ids <= trainer.collector.special
        collect = trainer.collector.collect

        def watched(*given: Any, **options: Any) -> list[Completion]:
            found = collect(*given, **options)
            steps.append(found)
            whole = [type(one.tokens)(one.tokens.prompt, one.tokens.completion) for one in found]
            scores.append(trainer.policy.score(whole, 1.0))
            return found

        trainer.collector.collect = watched

    status = train(folder, prepare=watch)
    assert status[0] == "finished"
    return {
        "preset": request.param, "samples": RUNS[request.param][1], "steps": steps, "scores": scores,
        "metrics": metrics(folder), "folder": folder,
    }  # fmt: skip


def test_every_group_is_whole_and_in_order(run: dict[str, Any]) -> None:
    for completions in run["steps"]:
        assert [one.index for one in completions] == list(range(4 * run["samples"]))
        assert Counter(one.group for one in completions) == dict.fromkeys(range(4), run["samples"])
        assert all(one.scored.reward is not None for one in completions)


def test_a_fork_begins_as_its_parent_and_is_what_the_policy_says(run: dict[str, Any]) -> None:
    """Also tokens that a strategy gave instead of drawing, and completions it cut off."""
    for completions, scores in zip(run["steps"], run["scores"], strict=True):
        forked = [one for one in completions if one.parent is not None]
        assert forked
        for one in forked:
            parent = completions[one.parent]
            assert one.tokens.completion[: one.fork_at] == parent.tokens.completion[: one.fork_at]
            assert one.group == parent.group
        lengths = [len(one.tokens.completion) for one in completions]
        assert all(
            len(one.engine_logprob) == len(one.engine_entropy) == n for one, n in zip(completions, lengths, strict=True)
        )
        assert max(lengths) <= 12
        for name, said in (("logprob", "engine_logprob"), ("entropy", "engine_entropy")):
            engine = torch.tensor([value for one in completions for value in getattr(one, said)])
            torch.testing.assert_close(engine, scores[name].cpu().float(), rtol=1e-3, atol=1e-3)


def test_only_cure_keeps_shared_tokens_out_of_the_step(run: dict[str, Any]) -> None:
    for completions in run["steps"]:
        for one in completions:
            shared = one.fork_at or 0
            masked = shared if run["preset"] == "cure" else 0
            assert one.tokens.learned == len(one.tokens.completion) - masked
            if masked:
                assert one.tokens.counts == (False,) * shared + (True,) * one.tokens.learned


def test_its_figures_add_up(run: dict[str, Any]) -> None:
    for step, completions in enumerate(run["steps"], 1):
        found = run["metrics"][step]
        whole = sum(one.parent is None for one in completions) / 4
        assert (found["rollout/whole"], found["rollout/forks"]) == (whole, run["samples"] - whole)
        assert 0 < found["rollout/new_token_share"] <= 1
        assert found["rollout/fork_bounds_share"] == 0  # this engine's entropy is exact
        pruned = [one.finish_reason == "pruned" for one in completions]
        assert found.get("rollout/pruned_share", 0) == sum(pruned) / len(pruned)
        assert any(pruned) == (run["preset"] == "echo-rollout")


def test_its_rollout_file_holds_the_trees_and_gives_the_objective_s_weights_again(run: dict[str, Any]) -> None:
    recording = read(run["folder"].rollout_file(1))
    rows = pq.read_table(run["folder"].rollout_file(1)).to_pylist()
    for row, one in zip(rows, run["steps"][0], strict=True):
        assert (row["branch_parent"], row["finish_reason"]) == (one.parent, one.finish_reason)
        assert (row["branch_token"] or 0) == (one.fork_at or 0)
    assert recording.objective is not None
    again, was = effect(recording, recording.objective, recording.step.knobs), own(recording)
    torch.testing.assert_close(again.weight, was.weight, rtol=1e-3, atol=1e-4)
    assert bool(was.weight.any())


def test_stopping_and_resuming_grows_the_same_trees(tmp_path: Path) -> None:
    changes = {"optimiser": {"steps": 4, "warmup_steps": 0}, "checkpoint": {"every_steps": 2}}
    whole, parts = (make(tmp_path / name, config_of("treerl", **changes)) for name in ("whole", "parts"))
    train(whole)
    train(parts, prepare=lambda trainer: stop_before(trainer, 3))
    assert train(parts, attempt=2)[0] == "finished"
    assert metrics(whole) == metrics(parts)
    assert same_weights(whole, parts, 4)


def test_two_processes_grow_the_trees_of_one(tmp_path: Path) -> None:
    optimiser = {"optimiser": {"steps": 2, "epsilon": 1e-3, "warmup_steps": 0}}
    one = make(tmp_path / "one", config_of("cure", **optimiser))
    two = make(tmp_path / "two", config_of("cure", **optimiser, resources={"processes": 2}))
    process = start(two)
    train(one)
    assert process.wait() == 0, two.log.read_text()
    theirs = metrics(two)
    for step, values in metrics(one).items():
        assert values.keys() == theirs[step].keys()
        for name, value in values.items():
            assert theirs[step][name] == pytest.approx(value, abs=1e-5, rel=1e-4), (step, name)
