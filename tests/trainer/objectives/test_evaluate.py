"""`evaluate` as people call it: layouts, names, errors, the command."""

from __future__ import annotations

import json

import pytest

import trainer.objectives
from trainer.errors import ConfigError
from trainer.objectives import evaluate
from trainer.objectives.evaluate import main

LOGPROB = [[-1.0, -2.0, -0.5], [-0.3, -0.2, -9.0]]
NESTED = {
    "log_prob": LOGPROB,
    "old_log_prob": [[-1.1, -2.0, -0.6], [-0.3, -0.4, -9.0]],
    "entropy": [[1.0, 0.5, 0.2], [0.4, 0.3, 9.0]],
    "response_mask": [[1, 1, 1], [1, 1, 0]],
    "rewards": [1.0, 0.0],
    "uid": ["a", "a"],
}
OBJECTIVE = {"preset": "entropy-bonus", "parts": [{"type": "entropy_bonus", "coefficient": 0.1}]}


def test_it_is_a_function_under_the_package_too() -> None:
    assert trainer.objectives.evaluate("grpo", NESTED)["loss"] == evaluate("grpo", NESTED)["loss"]


def test_padded_ragged_and_flat_batches_agree() -> None:
    padded = evaluate(OBJECTIVE, NESTED)
    rows = {key: [NESTED[key][0], NESTED[key][1][:2]] for key in ("log_prob", "old_log_prob", "entropy")}
    ragged = evaluate(OBJECTIVE, {**rows, "rewards": [1.0, 0.0], "uid": ["a", "a"]})
    flat = {key: [*first, *second] for key, (first, second) in rows.items()}
    flat |= {"sequence": [0, 0, 0, 1, 1], "reward": [1.0, 0.0], "group": [7, 7]}
    flatly = evaluate(OBJECTIVE, flat)
    assert padded["loss"] == pytest.approx(ragged["loss"])
    assert padded["loss"] == pytest.approx(flatly["loss"])
    for name in ("grad_logprob", "grad_entropy", "advantage", "mask", "weight"):
        first, second = padded[name]
        assert second[2] == 0
        assert ragged[name] == [first, second[:2]]
        assert flatly[name] == [*first, *second[:2]]
    assert padded["grad_entropy"][0] == pytest.approx([-0.02] * 3)
    assert json.loads(json.dumps(padded)) == json.loads(json.dumps(padded))


def test_a_null_reward_is_an_invalid_completion() -> None:
    found = evaluate("grpo", {"logprob": [[-1.0], [-1.0], [-1.0]], "reward": [1, None, 0], "group": [0, 0, 0]})
    assert found["mask"] == [[1], [0], [1]]
    assert found["advantage"][1] == [0]


def test_history_steps_the_controllers_and_knobs_start_them() -> None:
    history = [{"entropy": 9.0, "entropy_sampled": 0.1, "reward": 0.5}] * 3
    found = evaluate("skywork-adaptive", {"history": history, "knobs": {"entropy_coefficient": 0.001}})
    assert [knobs["entropy_coefficient"] for knobs in found["course"]] == pytest.approx([0.0011, 0.0012, 0.0013])
    assert found["knobs"]["entropy_enabled"] == 1.0
    assert found["loss"] == 0.0


def test_keys_without_meaning_are_named_in_the_answer() -> None:
    assert evaluate("grpo", {**NESTED, "logbrob": [1]})["ignored"] == ["logbrob"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"log_prob": [[-1.0, -2.0], [-0.3, -0.2]]}, "response_mask"),
        ({"old_log_prob": [[-1.0, -2.0], [-0.3, -0.2]]}, "old_logprob"),
        ({"entropy": [[1.0, 0.5, None], [0.4, 0.3, 9.0]]}, "entropy"),
        ({"entropy": [[1.0, 0.5, float("nan")], [0.4, 0.3, 9.0]]}, "entropy"),
        ({"entropy": "much"}, "entropy"),
        ({"rewards": [1.0]}, "reward"),
        ({"uid": ["a"]}, "group"),
        ({"knobs": {"clip_low": "wide"}}, "knobs.clip_low"),
        ({"history": [{"reward": 1}]}, "history.entropy"),
    ],
)
def test_a_wrong_batch_is_refused_by_field(change: dict, field: str) -> None:
    with pytest.raises(ConfigError) as error:
        evaluate(OBJECTIVE, {**NESTED, **change})
    assert error.value.field == field


def test_a_wrong_objective_is_refused_by_field() -> None:
    with pytest.raises(ConfigError, match="less than or equal to 1") as error:
        evaluate({"preset": "grpo", "parts": [{"type": "ppo_clip", "clip_low": 7}]}, NESTED)
    assert "clip_low" in error.value.field


def test_the_command_writes_what_the_function_returns(tmp_path, capsys) -> None:
    objective, batch, out = tmp_path / "o.json", tmp_path / "b.json", tmp_path / "out.json"
    objective.write_text(json.dumps(OBJECTIVE))
    batch.write_text(json.dumps(NESTED))
    assert main(["--objective", str(objective), "--batch", str(batch), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["loss"] == evaluate(OBJECTIVE, NESTED)["loss"]
    assert main(["--objective", "grpo", "--batch", str(batch)]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == evaluate("grpo", NESTED)["loss"]
    assert main(["--objective", "grpo", "--batch", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
