"""Baselines, Entrocraft, Skywork; and what the other cases share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from trainer.objectives import evaluate

AGGREGATION = {
    "token-mean": {"type": "token_mean"},
    "seq-mean-token-sum": {"type": "seq_mean_token_sum"},
    "seq-mean-token-mean": {"type": "seq_mean_token_mean"},
    "seq-mean-token-sum-norm": {"type": "const_norm", "length": 7, "divide_by_sequences": False},
}


def named(given: dict[str, Any], *names: str, otherwise: Any = None) -> Any:
    """Return a hyper-parameter under the first of the names that recordings give it."""
    return next((given[name] for name in names if given.get(name) is not None), otherwise)


def aggregation(recording: Recording, otherwise: str = "token-mean") -> dict[str, Any]:
    """Return the aggregation a recording names; some say "(forced)" behind it."""
    return AGGREGATION[recording.settings.get("loss_agg_mode", otherwise).split(" ")[0]]


def clip(given: dict[str, Any], low: float = 0.2, high: float = 0.2, dual: float = 0.0) -> dict[str, Any]:
    """Return the clipped ratio with the ends that the hyper-parameters name; one end stands for both."""
    both = named(given, "cliprange", "clip_ratio")
    return {
        "type": "ppo_clip",
        "clip_low": named(given, "clip_ratio_low", "cliprange_low", "clip_low", otherwise=both or low),
        "clip_high": named(given, "clip_ratio_high", "cliprange_high", "clip_high", otherwise=both or high),
        "dual_clip": named(given, "clip_ratio_c", "dual_clip", otherwise=dual),
    }


def policy(recording: Recording, found: dict) -> Iterator[Comparison]:
    """Compare loss and gradient of a policy loss."""
    yield same("gradient", found["grad_logprob"], recording.outputs["grad_log_prob"], recording.tolerance)
    yield same("loss", found["loss"], recording.outputs["loss"], recording.tolerance)


@case("dapo_clip_higher", "ppo_dual_clip")
def ppo(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    clip = {
        "type": "ppo_clip",
        "clip_low": given["clip_ratio_low"],
        "clip_high": given["clip_ratio_high"],
        "dual_clip": given.get("clip_ratio_c", 0.0),
    }
    found = evaluate({"preset": "dapo", "parts": [clip, AGGREGATION[given["loss_agg_mode"]]]}, recording.inputs)
    yield from policy(recording, found)
    recorded = recording.outputs["metrics"]
    yield same("clip share", found["metrics"]["objective/clip_share"], recorded["actor/pg_clipfrac"], 1e-6)
    yield same("KL", found["metrics"]["objective/old_kl"], recorded["actor/ppo_kl"], 1e-6)


@case("grpo_advantage")
def group_advantage(recording: Recording) -> Iterator[Comparison]:
    std = "group" if recording.settings["norm_adv_by_std_in_grpo"] else "none"
    found = evaluate({"preset": "grpo", "parts": [{"type": "group_norm", "std": std}]}, recording.inputs)
    # the recording added epsilon to a lone completion's std in float32: 1e-7, the rest agrees to 1e-15
    yield same("advantage", found["advantage"], recording.outputs["advantages"], 1e-6)


@case("kl_penalty")
def kl_penalty(recording: Recording) -> Iterator[Comparison]:
    names = {"low_var_kl": "k3", "mse": "k2", "kl": "k1"}
    kind = recording.settings["kl_penalty"]
    alone = [
        {"type": "kl_penalty", "estimator": names.get(kind, kind), "coefficient": 1.0},
        {"type": "const_norm", "length": 1, "divide_by_sequences": False},
    ]
    rows, columns = len(recording.outputs["value"]), len(recording.outputs["value"][0])
    inputs = {**recording.inputs, "advantages": [[0.0] * columns] * rows}
    found = evaluate({"preset": "grpo", "parts": alone}, inputs)
    yield same("sum", found["loss"], sum(map(sum, recording.outputs["value"])), recording.tolerance)
    yield same("gradient", found["grad_logprob"], recording.outputs["grad_logprob_of_sum"], recording.tolerance)


@case("skywork_adaptive_entropy")
def skywork(recording: Recording) -> Iterator[Comparison]:
    course = evaluate("skywork-adaptive", recording.inputs)["course"]
    found = [[knobs["entropy_coefficient"], knobs["entropy_enabled"]] for knobs in course]
    yield same("coefficient and switch", found, recording.outputs["coef_and_enabled"], 0)


@case("entrocraft")
def entrocraft(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    low, high = given["entropy_lower_bound_range"], given["entropy_upper_bound_range"]
    part = {
        "type": "entrocraft",
        "variant": "released",
        "schedule": "cosine" if "__cos" in recording.name else "linear",
        "low_start": low[0],
        "low_end": low[1],
        "high_start": high[0],
        "high_end": high[1],
    }
    inputs = {**recording.inputs, "step": given["step"], "total_steps": given["total_steps"]}
    found = evaluate({"preset": "entrocraft", "parts": [part]}, inputs)
    yield same("advantage", found["advantage"], recording.outputs["advantages"], 1e-6)
