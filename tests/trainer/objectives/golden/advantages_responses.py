"""CANON, EMPG, UCAS, SEED-GRPO, AEM, EAR, EDGE-GRPO: one number for a response."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from trainer.objectives import evaluate


def each_response(rows: list[list[float]], mask: list[list[float]]) -> list[float]:
    """Return the mean over the tokens of each row that count: the number its tokens share."""
    return [
        math.fsum(value for value, kept in zip(row, keep, strict=True) if kept) / sum(keep)
        for row, keep in zip(rows, mask, strict=True)
    ]


@case("canon")
def canon(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    part = {
        "type": "canon",
        "metric": next(metric for metric in ("length", "random", "entropy") if metric in f"{recording.name}__entropy"),
        "divisor": given.get("max_length", 1),
        "mix": given.get("_lambda", 1.0),
        "alpha": given.get("alpha", 1.0),
        "beta": given.get("beta", 0.0),
    }
    if "anneal" in recording.name:  # the released function gives 1 - accuracy to the comparison inside a half
        part |= {"schedule": "accuracy", "order": "intra_first"}
    if "cosine" in recording.name:
        part |= {"schedule": "cosine", "order": "intra_first"}
    if "cosine_restart_r" in recording.name:
        part |= {"order": "inter_first", "high": 1.0, "low": 0.4}
    part |= {name: given[key] for name, key in COSINE.items() if key in given}
    inputs = {**recording.inputs, "step": given.get("step", recording.inputs.get("step", 0))}
    found = evaluate({"preset": "canon", "parts": [part]}, inputs)
    yield same("advantage", found["advantage"], recording.outputs["advantages"], recording.tolerance)
    if "sequence_advantage" in recording.outputs:
        mean = each_response(found["advantage"], recording.inputs["response_mask"])
        yield same("of responses", mean, recording.outputs["sequence_advantage"], recording.tolerance)


COSINE = {"length": "total_epochs", "high": "max_lr", "low": "min_lr", "warmup": "warmup_epochs", "cycles": "cycles"}


@case("empg")
def empg(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    part = {"type": "empg", "k": given["k"], "k_future": given["k_f"], "zeta": given["zeta"]}
    inputs = dict(recording.inputs)
    names = list(dict.fromkeys(inputs["trajectory"]))
    inputs["trajectory"] = [names.index(name) for name in inputs["trajectory"]]
    inputs["turn"] = inputs.pop("turn_index")
    found = evaluate({"preset": "empg", "parts": [part]}, inputs)
    yield same("advantage", found["advantage"], recording.outputs["advantages"], recording.tolerance)
    mean = each_response(found["advantage"], inputs["response_mask"])
    yield same("of steps", mean, recording.outputs["step_advantage"], recording.tolerance)


@case("ucas")
def ucas(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    std = given["norm_adv_by_std"]
    epsilon = given["epsilon"]
    certainty = {
        "type": "ucas_certainty",
        "variant": "released",
        "positive": given["beta_positive"],
        "negative": given["beta_negative"],
        "std": std,
        "epsilon": epsilon,
    }
    parts = [
        {"type": "group_norm", "std": "group" if std else "none", "epsilon": epsilon},
        certainty,
        {"type": "ucas_logit_penalty", "penalty": given["logit_penalty"], "epsilon": epsilon},
    ]
    inputs = dict(recording.inputs)
    inputs["logsumexp"] = inputs.pop("token_certainty")  # logsumexp - mean of the logits
    inputs["mean_logit"] = [[0.0] * len(row) for row in inputs["logsumexp"]]
    found = evaluate({"preset": "ucas", "parts": parts}, inputs)
    yield same("advantage", found["advantage"], recording.outputs["advantages"], recording.tolerance)
    alone = [{"type": "ucas_logit_penalty", "penalty": 1.0, "epsilon": epsilon}, certainty]
    nothing = {**inputs, "sequence_advantage": [0.0] * len(inputs["token_logit"])}
    found = evaluate({"preset": "ucas", "parts": alone}, nothing)
    yield same(
        "scaled logit", _negative(found["advantage"]), recording.outputs["normalised_logit"], recording.tolerance
    )


def _negative(rows: list[list[float]]) -> list[list[float]]:
    return [[-value for value in row] for row in rows]


@case("formula__seed_grpo")
def seed_grpo(recording: Recording) -> Iterator[Comparison]:
    def factor(clusters: list[int], **settings: Any) -> list[float]:
        inputs = {"answer": clusters, "group": [0] * len(clusters), "advantage": [[1.0]] * len(clusters)}
        part = {"type": "semantic_entropy", **settings}
        return [row[0] for row in evaluate({"preset": "seed-grpo", "parts": [part]}, inputs)["advantage"]]

    for number, clusters in enumerate(recording.inputs["groups"]):
        recorded = recording.outputs[f"group{number}"]
        for name, expected in recorded.items():
            form, _, alpha = name.partition("_alpha")
            if alpha:
                found = factor(clusters, form=form, alpha=float(alpha))
                yield same(f"{name} {number}", found, [expected] * len(clusters), recording.tolerance)
        for average, name in (("printed", "se_cluster_mean"), ("shannon", "se_shannon")):
            share = [-math.log(value) for value in factor(clusters, form="exp", alpha=1.0, average=average)]
            limit = math.log(len(clusters))  # the factor stops at the largest possible entropy
            found = [value * limit for value in share]
            yield same(f"{name} {number}", found, [min(recorded[name], limit)] * len(clusters), recording.tolerance)


@case("formula__aem_reconstruction")
def aem(recording: Recording) -> Iterator[Comparison]:
    objective = {"preset": "aem", "parts": [{"type": "aem", "strength": recording.settings["lam"]}]}
    yield from multiplier(recording, objective, "weight", "shaped")


@case("formula__ettrl_ear")
def ear(recording: Recording) -> Iterator[Comparison]:
    residual = {"preset": "ettrl-ear", "parts": [{"type": "ear", "floor": -1000}]}
    yield from multiplier(recording, residual, "Y", "adv_res")
    clip = {"type": "ear", "form": "clip", "bound": recording.settings["beta"]}
    found = evaluate({"preset": "ettrl-ear", "parts": [clip]}, recording.inputs)["advantage"]
    mean = each_response(found, recording.inputs["response_mask"])
    yield same("clipped", mean, recording.outputs["adv_clip"], recording.tolerance)


@case("formula__edge_grpo")
def edge_grpo(recording: Recording) -> Iterator[Comparison]:
    yield from multiplier(recording, {"preset": "edge-grpo"}, "", "shaped")


def multiplier(recording: Recording, objective: dict, factor: str, shaped: str) -> Iterator[Comparison]:
    """Compare a factor of responses, found with unit advantages, and what it makes of the recorded advantages."""
    mask = recording.inputs["response_mask"]
    found = evaluate(objective, recording.inputs)["advantage"]
    yield same("advantage", each_response(found, mask), recording.outputs[shaped], recording.tolerance)
    if factor:
        unit = {**recording.inputs, "sequence_advantages": [1.0] * len(mask)}
        found = evaluate(objective, unit)["advantage"]
        yield same("factor", each_response(found, mask), recording.outputs[factor], recording.tolerance)
