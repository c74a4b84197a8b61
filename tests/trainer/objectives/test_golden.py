"""Against numbers recorded from the authors' code, through `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trainer.objectives import evaluate

GOLDEN = Path(__file__).parents[2] / "golden"


def load(name: str) -> tuple[dict, dict]:
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    return case["inputs"], case["outputs"]


def assert_same(found: list, expected: list, tolerance: float = 1e-8) -> None:
    a, b = (torch.tensor(value, dtype=torch.float64) for value in (found, expected))
    assert a.shape == b.shape
    assert float((a - b).abs().max() / b.abs().max()) <= tolerance


POLICY_CASES = {
    "dapo_clip_higher__token_mean": {"preset": "dapo", "parts": [{"type": "ppo_clip", "dual_clip": 3.0}]},
    "clip_cov__deterministic": {
        "preset": "clip-cov",
        "parts": [{"type": "clip_cov", "share": 0.9, "lower": 0.3, "upper": 5.0}],
    },
    "kl_cov__ratio_0p2": {"preset": "kl-cov", "parts": [{"type": "kl_cov", "share": 0.2, "coefficient": 1.0}]},
}


@pytest.mark.parametrize("name", POLICY_CASES)
def test_policy_losses_and_gradients(name: str) -> None:
    inputs, outputs = load(name)
    found = evaluate(POLICY_CASES[name], inputs)
    assert found["loss"] == pytest.approx(outputs["loss"], rel=1e-8)
    assert_same(found["grad_logprob"], outputs["grad_log_prob"])
    if "selected_mask" in outputs:
        kept = torch.tensor(found["mask"]) + torch.tensor(outputs["selected_mask"])
        assert torch.equal(kept, torch.tensor(inputs["response_mask"]).float())


@pytest.mark.parametrize("name", ["dapo_clip_higher__token_mean", "kl_cov__ratio_0p2"])
def test_metrics_agree_too(name: str) -> None:
    inputs, outputs = load(name)
    metrics = evaluate(POLICY_CASES[name], inputs)["metrics"]
    if "actor/pg_clipfrac" in outputs["metrics"]:
        assert metrics["objective/clip_share"] == pytest.approx(outputs["metrics"]["actor/pg_clipfrac"], rel=1e-6)
        assert metrics["objective/old_kl"] == pytest.approx(outputs["metrics"]["actor/ppo_kl"], rel=1e-6)


def test_group_advantage() -> None:
    inputs, outputs = load("grpo_advantage__std")
    # the recording added epsilon to the lone completion's std in float32: 1e-7, the rest agrees to 1e-15
    assert_same(evaluate("grpo", inputs)["advantage"], outputs["advantages"], 1e-7)
    several = slice(0, 5)
    assert_same(evaluate("grpo", inputs)["advantage"][several], outputs["advantages"][several])


def test_high_entropy_mask() -> None:
    inputs, outputs = load("beyond_80_20__trl_mask")
    found = evaluate("top-entropy-mask", inputs)
    assert found["mask"] == outputs["entropy_mask"]
    assert found["weight"] == outputs["entropy_mask"]  # advantage 1 where none is given


def test_entrocraft_as_released() -> None:
    inputs, outputs = load("entrocraft__linear_above")
    released = {"preset": "entrocraft", "parts": [{"type": "entrocraft", "variant": "released"}]}
    found = evaluate(released, {**inputs, "step": 50, "total_steps": 200})
    assert found["advantage"] == outputs["advantages"]
    assert found["target"] == pytest.approx((0.55, 0.65))


def test_k3_penalty() -> None:
    inputs, outputs = load("kl_penalty__k3")
    alone = {
        "preset": "grpo",
        "parts": [
            {"type": "kl_penalty", "estimator": "k3", "coefficient": 1.0},
            {"type": "const_norm", "length": 1, "divide_by_sequences": False},
        ],
    }
    found = evaluate(alone, {**inputs, "advantages": [[0.0] * 7] * 3})
    assert found["loss"] == pytest.approx(sum(map(sum, outputs["value"])), rel=1e-10)
    assert_same(found["grad_logprob"], outputs["grad_logprob_of_sum"])


def test_skywork_course() -> None:
    inputs, outputs = load("skywork_adaptive_entropy")
    course = evaluate("skywork-adaptive", inputs)["course"]
    found = [[knobs["entropy_coefficient"], knobs["entropy_enabled"]] for knobs in course]
    assert found == outputs["coef_and_enabled"]
