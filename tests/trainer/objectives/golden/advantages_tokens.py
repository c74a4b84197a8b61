"""Reasoning with exploration, DGPO, HICRA and its relatives: a number for each token."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from trainer.kernels import squared_hellinger
from trainer.objectives import evaluate

CHUNK = 1 << 20


@case("formula__reasoning_with_exploration")
def exploration(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    part = {"type": "entropy_advantage", "alpha": given["alpha"], "kappa": given["kappa"]}
    found = evaluate({"preset": "reasoning-with-exploration", "parts": [part]}, recording.inputs)["advantage"]
    yield same("advantage", found, recording.outputs["shaped_advantage"], recording.tolerance)
    bonus = torch.tensor(found, dtype=torch.float64) - torch.tensor(recording.inputs["advantages"], dtype=torch.float64)
    bonus = bonus * torch.tensor(recording.inputs["response_mask"])
    yield same("bonus", bonus, recording.outputs["bonus"], recording.tolerance)


@case("formula__dgpo")
def dgpo(recording: Recording) -> Iterator[Comparison]:
    given, mask = recording.settings, recording.inputs["response_mask"]
    logits, reference = (torch.tensor(recording.inputs[name], dtype=torch.float64) for name in ("logits", "ref_logits"))
    size = logits.shape[-1]
    sides = [(side.flatten(0, 1), torch.eye(size, dtype=torch.float64), None) for side in (logits, reference)]
    distance = squared_hellinger(*sides, temperature=1.0, chunk_bytes=CHUNK).reshape(logits.shape[:2])
    logp = logits.log_softmax(-1)
    inputs = {
        "hellinger": distance.tolist(),
        "old_entropy": (-(logp.exp() * logp).sum(-1)).tolist(),
        "response_mask": mask,
        "advantages": recording.inputs["advantages"],
    }
    part = {"type": "dgpo", "tau": given["tau"], "kappa": given["kappa"], "vocabulary": given["vocab"]}
    found = evaluate({"preset": "dgpo", "parts": [part]}, inputs)
    yield same("distance", distance, recording.outputs["hellinger_sq"], recording.tolerance, mask)
    yield same("advantage", found["advantage"], recording.outputs["shaped_advantage"], recording.tolerance)
    found = evaluate({"preset": "dgpo", "parts": [part]}, {**inputs, "advantages": mask})
    yield same("weight", found["advantage"], recording.outputs["weight"], recording.tolerance)
    given_size = {"type": "dgpo", "tau": given["tau"], "kappa": given["kappa"]}
    found = evaluate({"preset": "dgpo", "parts": [given_size]}, {**inputs, "vocabulary": size})
    yield same("of the model's size", found["advantage"], recording.outputs["shaped_advantage"], recording.tolerance)


@case("hicra_gtpo_sepa_maxrl")
def hicra(recording: Recording) -> Iterator[Comparison]:
    for name, expected in recording.outputs.items():
        recipe, _, given = name.rpartition("_")
        if recipe in {"maxrl", "centred"}:
            found = _normalised(recipe, [float(digit) for digit in given])
        elif recipe == "sepa_entropy":
            found = _pooled(recording, float(given))
        else:
            found = _shaped(recording, recipe, float(given.removeprefix("A")))
        yield same(name, found, expected, recording.tolerance)


def _normalised(recipe: str, rewards: list[float]) -> list[float]:
    objective = "maxrl" if recipe == "maxrl" else "hicra"
    inputs = {"reward": rewards, "group": [0] * len(rewards), "logprob": [[0.0]] * len(rewards)}
    inputs["planning"] = inputs["logprob"]
    return [row[0] for row in evaluate(objective, inputs)["advantage"]]


def _tokens(recording: Recording, advantage: float) -> dict:
    entropy = recording.inputs["entropy"]
    planning = recording.inputs["planning_mask"]
    return {"old_entropy": [entropy], "planning": [planning], "advantage": [[advantage] * len(entropy)]}


def _shaped(recording: Recording, recipe: str, advantage: float) -> list[float]:
    """Return the advantages under a recipe such as sepa0.5+gtpo+hicra or gtpo_beta2."""
    beta = float(recipe.partition("_beta")[2] or recording.settings["gtpo_beta"])
    stages = recipe.partition("_beta")[0].split("+")
    parts = [{"type": "group_norm"}, {"type": "ppo_clip"}, {"type": "token_mean"}]
    if stages[0].startswith("sepa"):
        parts.append({"type": "sepa", "pooling": float(stages[0].removeprefix("sepa")), "beta": beta})
    elif "gtpo" in stages:
        parts.append({"type": "gtpo", "beta": beta})
    if "hicra" in stages:
        parts.append({"type": "hicra", "alpha": recording.settings["hicra_alpha"]})
    return evaluate({"preset": "grpo", "parts": parts}, _tokens(recording, advantage))["advantage"][0]


def _pooled(recording: Recording, pooling: float) -> list[float]:
    """Return the pooled entropy, read off a weight that is it over its mean."""
    parts = [{"type": "sepa", "pooling": pooling, "beta": 1.0}, {"type": "hicra", "alpha": 0.0}]
    relative = evaluate({"preset": "sepa", "parts": parts}, _tokens(recording, 1.0))["advantage"][0]
    mean = sum(recording.inputs["entropy"]) / len(relative)  # pooling leaves it where it was
    return [value * mean for value in relative]
