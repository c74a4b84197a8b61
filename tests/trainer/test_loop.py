"""The loop, seen from the run folder: what a run writes, and what does and does not change its result."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest
import torch

from tests.trainer.runs import ROOT, events, make, metrics, small, train
from trainer.errors import RunFailed
from trainer.events import RunFolder, frames
from trainer.policy import Policy
from trainer.rewards.scoring import Scored
from trainer.tasks import Row
from trainer.tasks.countdown import Countdown

SMOOTH = {"epsilon": 1e-3}  # Adam divides by the gradient's size: without it, rounding noise becomes a full step


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    """One run of six steps."""
    folder = make(tmp_path_factory.mktemp("run"), small())
    assert train(folder)[0] == "finished"
    return folder


def weights(folder: RunFolder, step: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder.checkpoint(step) / "model.safetensors")


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def test_events_tell_the_run_in_order(finished):
    found = events(finished)
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
    kinds = [event["type"] for event in found]
    assert kinds[0] == "started"
    assert kinds[-1] == "metrics"
    assert [event["step"] for event in found if event["type"] == "evaluation"] == [0, 3, 6]
    assert [event["step"] for event in found if event["type"] == "rollouts"] == [1, 2, 3, 4, 5, 6]
    assert [(event["step"], event["final"]) for event in found if event["type"] == "checkpoint"] == [
        (3, False),
        (6, True),
    ]


def test_every_metric_is_documented(finished):
    text = (ROOT / "docs/events.md").read_text("utf-8")
    documented = set(re.findall(r"`([a-z]+(?:/[a-z0-9_<>]+)?)`", text))
    families = {name.partition("<")[0] for name in documented if "<" in name}
    for name in {name for values in metrics(finished, timeless=False).values() for name in values}:
        assert name in documented or any(name.startswith(family) for family in families), name


def test_a_rollout_file_explains_every_token(finished):
    rows = pq.read_table(finished.rollout_file(1)).to_pylist()
    assert [(row["group"], row["sample"]) for row in rows] == [
        (group, sample) for group in range(4) for sample in range(4)
    ]
    task = Countdown()
    of_key = {row.key: row for row in task.rows("train", 11)}
    for row in rows:
        count = len(row["token_ids"])
        assert {
            len(row[name]) for name in ("byte_offsets", "entropy", "logprob", "engine_logprob", "weight", "flags")
        } == {count}
        ends = [*row["byte_offsets"][1:], len(row["completion"].encode())]
        pieces = [row["completion"].encode()[a:b].decode() for a, b in zip(row["byte_offsets"], ends, strict=True)]
        assert "".join(pieces) == row["completion"]
        assert row["reward"] == task.score(of_key[row["row_key"]], row["completion"])
        assert json.loads(row["reward_parts"]) == {"task": row["reward"]}
        assert row["weight"] == pytest.approx(
            [row["advantage"]] * count, abs=2e-3
        )  # plain GRPO: nothing but the advantage
        assert row["engine_logprob"] == pytest.approx(row["logprob"], abs=1e-4)


def test_live_frames_end_with_the_recorded_text(finished):
    rows = pq.read_table(finished.rollout_file(6)).to_pylist()
    texts: dict[int, bytes] = {}
    for frame, _ in frames(finished.live.read_bytes()):
        assert frame.step == 6
        if frame.kind == 2:
            texts[frame.rollout] = texts.get(frame.rollout, b"") + frame.payload[frame.count * 10 :]
    assert len(texts) == 16
    for rollout, text in texts.items():
        assert text.decode() == rows[rollout]["completion"]


def test_microbatches_do_not_change_the_result(tmp_path):
    one = make(tmp_path / "one", small(optimiser={**SMOOTH, "tokens_per_microbatch": 1}))
    all_ = make(tmp_path / "all", small(optimiser={**SMOOTH, "tokens_per_microbatch": 100_000}))
    train(one)
    train(all_)
    for step in range(1, 7):
        for name, value in metrics(one)[step].items():
            assert metrics(all_)[step][name] == pytest.approx(value, abs=1e-5, rel=1e-5), name
    assert furthest(weights(one, 6), weights(all_, 6)) < 1e-6


def test_running_out_of_memory_halves_microbatches_and_keeps_the_result(tmp_path, monkeypatch):
    plain = make(tmp_path / "plain", small(optimiser=SMOOTH))
    train(plain)
    honest, refused = Policy._states, []

    def short_of_memory(self, rows):
        if len(rows) > 4:
            refused.append(len(rows))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, rows)

    monkeypatch.setattr(Policy, "_states", short_of_memory)
    tight = make(tmp_path / "tight", small(optimiser=SMOOTH))
    assert train(tight)[0] == "finished"
    assert refused
    assert furthest(weights(plain, 6), weights(tight, 6)) < 1e-6


def test_several_minibatches_move_off_policy(tmp_path):
    folder = make(tmp_path, small(optimiser={"minibatches_per_step": 2, "learning_rate": 1e-3}))
    train(folder)
    moved = [abs(metrics(folder)[step]["kl/old"]) for step in range(2, 7)]
    assert max(moved) > 1e-6
    rows = pq.read_table(folder.rollout_file(2)).to_pylist()
    assert any(weight for row in rows if row["group"] >= 2 for weight in row["weight"])


def test_a_reference_policy_starts_at_no_divergence(tmp_path):
    parts = [{"type": "kl_penalty"}]
    folder = make(tmp_path, small(objective={"parts": parts}, optimiser={"learning_rate": 1e-3}))
    train(folder)
    assert metrics(folder)[1]["kl/ref"] == pytest.approx(0, abs=1e-9)
    assert metrics(folder)[6]["kl/ref"] > 1e-5


def test_steering_takes_effect_at_the_next_step(tmp_path):
    folder = make(tmp_path, small(optimiser={"steps": 2}))
    request = {"seq": 4, "knobs": {"temperature": 0.7, "nonsense": 1.0, "clip_low": -5}}
    folder.control.write_text(json.dumps(request))
    train(folder)
    changes = {event["name"]: event for event in events(folder, "knob")}
    assert changes["temperature"]["new"] == 0.7
    assert changes["temperature"]["control_seq"] == 4
    assert metrics(folder)[1]["knob/temperature"] == 0.7
    complaints = " ".join(event["message"] for event in events(folder, "warning"))
    assert "nonsense" in complaints
    assert "clip_low" in complaints
    assert len(events(folder, "knob")) == len(changes)  # applied once, not at every step


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seq": 1, "knobs": {"temperature": "hot"}}', "\ufeff\x00"])
def test_an_unreadable_control_file_warns_and_the_run_goes_on(tmp_path, text):
    folder = make(tmp_path, small(optimiser={"steps": 2}, evaluation={"every_steps": 0}))
    folder.control.write_text(text)
    assert train(folder)[0] == "finished"
    assert [event["code"] for event in events(folder, "warning")] == ["control"]


def test_stop_writes_a_checkpoint_and_the_run_can_go_on(tmp_path):
    folder = make(tmp_path, small(optimiser={"steps": 4}))
    folder.control.write_text(json.dumps({"seq": 1, "stop": True}))
    assert train(folder)[0] == "stopped"
    assert (folder.checkpoint(0) / "manifest.json").exists()
    folder.control.unlink()
    assert train(folder, attempt=2)[0] == "finished"
    assert sorted(metrics(folder)) == [0, 1, 2, 3, 4]


def breaking(monkeypatch, steps: set[int]) -> None:
    """Make the objective's loss infinite in some steps."""
    import dataclasses

    from trainer.objectives import Objective

    honest = Objective.apply

    def broken(self, batch, step):
        outcome = honest(self, batch, step)
        return dataclasses.replace(outcome, loss=torch.tensor(float("inf"))) if step.step in steps else outcome

    monkeypatch.setattr(Objective, "apply", broken)


def test_a_step_that_is_not_finite_is_skipped_and_reported(tmp_path, monkeypatch):
    breaking(monkeypatch, {2, 3, 5})
    folder = make(tmp_path, small(checkpoint={"every_steps": 1, "keep": 10}))
    assert train(folder)[0] == "finished"
    assert [event["step"] for event in events(folder, "warning")] == [2, 3, 5]
    assert furthest(weights(folder, 1), weights(folder, 2)) == 0
    assert furthest(weights(folder, 3), weights(folder, 4)) > 0


def test_three_such_steps_in_a_row_end_the_run(tmp_path, monkeypatch):
    breaking(monkeypatch, {2, 3, 4})
    with pytest.raises(RunFailed, match="3 steps in a row"):
        train(make(tmp_path, small()))


def test_weights_that_are_not_finite_end_the_run_too(tmp_path):
    from trainer.loop import Trainer

    def poison(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.policy.lm.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")

    with pytest.raises(RunFailed, match="not finite"):
        train(make(tmp_path, small(evaluation={"every_steps": 0})), prepare=poison)


def test_invalid_rewards_are_counted_and_teach_nothing(tmp_path, monkeypatch):
    def half(self: Countdown, row: Row, completion: str) -> float | None:
        return None if completion < "4" else float(len(completion))

    monkeypatch.setattr(Countdown, "score", half)
    folder = make(tmp_path, small(optimiser={"steps": 1}))
    train(folder)
    rows = pq.read_table(folder.rollout_file(1)).to_pylist()
    invalid = [row for row in rows if row["reward"] is None]
    assert 0 < len(invalid) < len(rows)
    assert metrics(folder)[1]["reward/invalid"] == len(invalid)
    assert all(weight == 0 for row in invalid for weight in row["weight"])


def test_a_step_without_any_reward_leaves_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.rewards.pool.score_sample", lambda *_: Scored(None, reason="timeout"))
    folder = make(tmp_path, small(optimiser={"steps": 2}, checkpoint={"every_steps": 1, "keep": 5}))
    assert train(folder)[0] == "finished"
    assert furthest(weights(folder, 1), weights(folder, 2)) == 0


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"gradient_checkpointing": True}], ids=str)
def test_other_ways_to_hold_the_model_train(tmp_path, changes):
    folder = make(tmp_path, small(model=changes, checkpoint={"every_steps": 1, "keep": 10}))
    assert train(folder)[0] == "finished"
    assert furthest(weights(folder, 1), weights(folder, 6)) > 0
    assert metrics(folder)[1]["mismatch/mean_abs"] < 0.05


def test_gradient_checkpointing_does_not_change_the_result(tmp_path):
    # the frugal one runs prompts per row: other rounding, which Adam's small epsilon would turn into full steps
    plain = make(tmp_path / "a", small(optimiser=SMOOTH))
    frugal = make(tmp_path / "b", small(optimiser=SMOOTH, model={"gradient_checkpointing": True}))
    train(plain)
    train(frugal)
    assert furthest(weights(plain, 6), weights(frugal, 6)) < 1e-5


def test_auxiliary_rollouts_are_drawn_and_kept_apart(tmp_path):
    folder = make(tmp_path, small(objective={"preset": "aepo"}, recording={"max_samples": 100}))
    assert train(folder)[0] == "finished"
    rows = pq.read_table(folder.rollout_file(1)).to_pylist()
    assert len(rows) == 20  # 4 groups of 4, and one prompt in four sampled again
    assert sum(bool(row["flags"][0] & 4) for row in rows) == 4


def test_a_run_that_can_grade_nothing_ends_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.rewards.pool.score_sample", lambda *_: Scored(None, reason="timeout"))
    folder = make(tmp_path, small(evaluation={"every_steps": 0}))
    with pytest.raises(RunFailed, match=r"no completion of 3 steps in a row could be graded .*timeout"):
        train(folder)
    assert [event["step"] for event in events(folder, "warning") if event["code"] == "invalid"] == [1, 2, 3]
