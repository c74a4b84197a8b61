"""SAFE, ARES's KL strengths and EntroPIC: controllers stepped through a recorded history.

Recordings hold one entry for each call: lists by name, or a list of objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from trainer.objectives import evaluate

LEVELS = ("easy", "medium", "hard")


def column(table: Any, *names: str) -> Any:
    """Return what a table holds under the first of the names it knows, or None."""
    rows = table if isinstance(table, list) else []
    for name in names:
        if isinstance(table, dict) and name in table:
            return table[name]
        if rows and isinstance(rows[0], dict) and name in rows[0]:
            return [row[name] for row in rows]
    return None


def stepped(preset: str, part: dict, history: list[dict]) -> list[dict]:
    return evaluate(
        {"preset": preset, "parts": [part]}, {"entropy": [[1.0]], "ref_logprob": [[0.0]], "history": history}
    )["course"]


@case("safe__entropy_gated_kl")
def safe(recording: Recording) -> Iterator[Comparison]:
    calls = zip(
        column(recording.inputs, "kl", "kls"),
        column(recording.inputs, "entropy", "entropies"),
        column(recording.inputs, "reward", "rewards"),
        strict=True,
    )
    history = [{"kl": kl, "entropy": entropy, "reward": reward} for kl, entropy, reward in calls]
    settings = recording.settings
    base = settings.get("base_threshold", settings.get("kl_base_threshold", 0.3))
    part = {"type": "safe_pid", "base": base, "entropy_floor": settings.get("entropy_floor", 2.0)}
    course = stepped("safe", part, history)
    threshold, penalty = ([knobs[name] for knobs in course] for name in ("kl_threshold", "kl_excess"))
    yield same("penalty", penalty, column(recording.outputs, "penalty", "penalties"), recording.tolerance)
    recorded = column(recording.outputs, "threshold", "thresholds", "thr")
    if recorded is not None:
        yield same("threshold", threshold, recorded, recording.tolerance)
    active = column(recording.outputs, "active")
    if active is not None:
        yield same("active", [float(knobs["kl_coefficient"] > 0) for knobs in course], active, 0)
    smooth = column(recording.outputs, "kl_short", "ks")
    if smooth is not None:  # the excess is twice the penalty over its derivative
        on = [knobs["kl_coefficient"] > 0 for knobs in course]
        found = [
            k["kl_threshold"] + 2 * k["kl_excess"] / k["kl_coefficient"] for k in course if k["kl_coefficient"] > 0
        ]
        yield same("smoothed", found, [x for x, yes in zip(smooth, on, strict=True) if yes], recording.tolerance)


@case("safe__asymmetric_kl")
def safe_asymmetric(recording: Recording) -> Iterator[Comparison]:
    kls = column(recording.inputs, "kl", "kls") or recording.inputs
    settings = recording.settings
    part = {
        "type": "safe_asymmetric",
        "threshold": settings.get("threshold", 0.3),
        "strength": settings.get("lambda_asymmetric", 0.1),
        "momentum": settings.get("lambda_momentum", 5.0),
        "window": settings.get("momentum_window", 50),
    }
    course = stepped("safe-asymmetric", part, [{"kl": kl, "entropy": 1.0} for kl in kls])
    expected = column(recording.outputs, "penalty", "penalties") or recording.outputs
    yield same("penalty", [knobs["kl_excess"] for knobs in course], expected, recording.tolerance)


@case("ares__bucket_kl_controller")
def ares_kl(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    part = {
        "type": "ares_kl_control",
        "target": given.get("kl_target_default", given.get("target", 0.01)),
        "decay": given.get("kl_ema_decay", given.get("ema", 0.97)),
        "dead_zone": given.get("kl_deadzone", given.get("deadzone", 0.02)),
        "interval": given.get("kl_update_interval", given.get("interval", 100)),
        "rate": given.get("kl_beta_lr", given.get("lr", 0.05)),
        "limit": given.get("kl_beta_clip", given.get("clip", 0.2)),
    }
    history = [{"entropy": 1.0, "metrics": metrics} for metrics in level_means(recording.inputs)]
    tokens = {"entropy": [[1.0]], "ref_logprob": [[0.0]], "trigger": [[0.0]], "correct": [1.0], "history": history}
    course = evaluate({"preset": "ares", "parts": [part]}, tokens)["course"]
    recorded = column(recording.outputs, "beta", "betas") or recording.outputs
    for name in LEVELS:
        expected = column(recorded, name)
        if isinstance(expected, list):
            yield same(name, [knobs[f"kl_{name}"] for knobs in course], expected, recording.tolerance)
        elif expected is not None:
            yield same(name, course[-1][f"kl_{name}"], expected, recording.tolerance)


def level_means(inputs: Any) -> Iterator[dict[str, float]]:
    """Yield each update's mean divergence of the difficulties that occur in it."""
    if column(inputs, *LEVELS) is not None:
        series = {name: column(inputs, name) for name in LEVELS if column(inputs, name) is not None}
        for row in zip(*series.values(), strict=True):
            found = dict(zip(series, row, strict=True))
            yield {f"objective/kl_{name}": value for name, value in found.items() if value is not None}
        return
    updates = zip(column(inputs, "difficulty", "difficulties"), column(inputs, "seq_mean_kl", "kl", "kls"), strict=True)
    for levels, values in updates:
        split = {name: [kl for level, kl in zip(levels, values, strict=True) if level == name] for name in LEVELS}
        yield {f"objective/kl_{name}": sum(kls) / len(kls) for name, kls in split.items() if kls}


@case("entropic_pi_controller")
def entropic(recording: Recording) -> Iterator[Comparison]:
    inputs, known = recording.inputs, {**recording.settings}
    entropies = column(inputs, "entropies", "entropy", "current_entropy") or inputs
    target = known.get("target_entropy", known.get("fixed_entropy", known.get("H0", known.get("target"))))
    parts = [{"type": "raw_reward"}, {"type": "entropic_weight", "target": target}]
    alphas, carried, weights = [], [], []
    for step, level in enumerate(entropies):
        batch = {"logprob": [[0.0], [0.0]], "reward": [1.0, -1.0], "current_entropy": level}
        batch["history"] = entropies[: step + 1]
        batch["knobs"] = {"entropic_integral": known.get("last_alpha", 0.0)}
        after = evaluate({"preset": "entropic", "parts": parts}, batch)
        batch["history"] = entropies[:step]
        found = evaluate({"preset": "entropic", "parts": parts}, batch)
        alphas.append(found["metrics"]["objective/entropic_alpha"])
        carried.append(after["knobs"]["entropic_integral"])
        weights.append([found["advantage"][0][0], -found["advantage"][1][0]])
    kept = {
        "alpha": (alphas, ("alpha", "alphas")),
        "carried": (carried, ("last_alpha", "last", "carried")),
        "weight": (weights, ("weights", "weight")),
        "weight of positives": ([up for up, _ in weights], ("weight_positive", "weight_pos", "w_pos")),
        "weight of negatives": ([down for _, down in weights], ("weight_negative", "weight_neg", "w_neg")),
    }
    for quantity, (values, names) in kept.items():
        expected = column(recording.outputs, *names)
        if expected is not None:
            yield same(quantity, values, expected, recording.tolerance)
