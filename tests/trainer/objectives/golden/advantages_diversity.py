"""G2RL and DSDR: rewards for responses unlike the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from trainer.kernels import gradient_features
from trainer.objectives import evaluate

CHUNK = 1 << 20


@case("formula__g2rl")
def g2rl(recording: Recording) -> Iterator[Comparison]:
    given, reward = recording.settings, recording.inputs["reward"]
    inputs = {
        "gradient_feature": recording.inputs["features"],
        "group": recording.inputs["group"],
        "reward": reward,
        "logprob": [[0.0]] * len(reward),
    }
    for variant in ("printed", "narrated"):
        part = {"type": "g2rl", "variant": variant, "weight": given["lam"], "limit": given["clip"]}
        found = evaluate({"preset": "g2rl", "parts": [part]}, inputs)["reward"]
        yield same(f"reward as {variant}", found, recording.outputs[f"reward_as_{variant}"], recording.tolerance)
    part = {"type": "g2rl", "variant": "narrated", "weight": 1.0, "limit": 10.0}
    found = evaluate({"preset": "g2rl", "parts": [part]}, inputs)["reward"]
    novelty = [new / old - 1 for new, old in zip(found, reward, strict=True)]
    yield same("novelty", novelty, recording.outputs["nu_minmax"], recording.tolerance)


def _first(source: dict[str, Any], *names: str) -> Any:
    found = next((source[name] for name in names if name in source), None)
    assert found is not None, f"none of {names} among {sorted(source)}; teach the case its name"
    return found


@case("formula__g2rl_feature")
def g2rl_feature(recording: Recording) -> Iterator[Comparison]:
    """Compare the mean gradient of the log-prob by the last hidden state with the kernel's, given the logits."""
    given = recording.inputs
    logits = torch.tensor(_first(given, "logits"), dtype=torch.float64)
    head = torch.tensor(_first(given, "W", "weight", "output_matrix", "head", "unembedding"), dtype=torch.float64)
    token = torch.tensor(_first(given, "tokens", "token", "responses", "token_ids", "y", "actions", "sampled"))
    head = head if head.shape[0] == logits.shape[-1] else head.T  # [V, d]
    logits, token = (logits[None], token[None]) if logits.dim() == 2 else (logits, token)
    mask = torch.tensor(given.get("response_mask", torch.ones(token.shape).tolist())) > 0
    owner = torch.arange(token.shape[0])[:, None].expand_as(token)[mask]
    # hidden states that have these logits: the logits themselves, beside room for the matrix
    size = logits.shape[-1]
    hidden = torch.cat([logits[mask], torch.zeros(len(owner), head.shape[1], dtype=torch.float64)], 1)
    weight = torch.cat([torch.eye(size, dtype=torch.float64), head], 1)
    inputs = hidden, weight, token[mask].long(), owner, token.shape[0]
    mean = gradient_features(*inputs, temperature=1.0, chunk_bytes=CHUNK)[:, size:]
    shapes = {tuple(mean.shape): mean, (mean.shape[1],): mean[0]}
    for name, value in recording.outputs.items():
        expected = torch.as_tensor(value, dtype=torch.float64)
        if (found := shapes.get(tuple(expected.shape))) is None:
            continue
        unit = torch.allclose(expected.norm(dim=-1), torch.ones((), dtype=torch.float64))
        found = found / found.norm(dim=-1, keepdim=True) if unit else found
        yield same(name, found, expected, recording.tolerance)


@case("formula__dsdr")
def dsdr(recording: Recording) -> Iterator[Comparison]:
    given, source, recorded = recording.settings, recording.inputs, recording.outputs
    groups = source["group"]
    inputs = {name: source[name] for name in ("group", "reward", "old_log_prob", "log_prob", "response_mask")}
    inputs |= {
        "embedding": source["embeddings"],
        "formula_novelty": _novelty(source["formulas"], groups),
        "correct": [float(reward > 0) for reward in source["reward"]],
    }
    yield same("formulas", inputs["formula_novelty"], recorded["d_formula"], recording.tolerance)

    def local(coefficient: float) -> dict[str, Any]:
        return {
            "type": "dsdr_local",
            "coefficient": coefficient,
            "temperature": given["tau"],
            "ceiling": given["sigma_d"],
        }

    shaper = {"type": "dsdr_reward", "weight": given["lambda_d"], "ceiling": given["sigma_d"]}
    found = evaluate({"preset": "dsdr", "parts": [shaper, local(0.0)]}, inputs)["reward"]
    yield same("reward", found, recorded["shaped_reward"], recording.tolerance)
    everyone = {**inputs, "correct": [1.0] * len(groups), "reward": [0.0] * len(groups)}
    part = {"type": "dsdr_reward", "weight": 1.0, "ceiling": 1.0}
    found = evaluate({"preset": "dsdr", "parts": [part, local(0.0)]}, everyone)["reward"]
    yield same("diversity", found, recorded["d"], recording.tolerance)
    # the recording sums over groups, the objective averages; without advantages the local term is the whole loss
    alone = {**inputs, "advantage": [[0.0] * len(row) for row in source["log_prob"]]}
    found = evaluate({"preset": "dsdr", "parts": [local(float(len(set(groups))))]}, alone)
    yield same("loss", found["loss"], -recorded["J_local"], recording.tolerance)
    yield same("gradient", found["grad_logprob"], recorded["grad_of_minus_J_local"], recording.tolerance)


def _novelty(formulas: list[list[str]], groups: list[int]) -> list[float]:
    """Return the share of each response's formulas that no other response of its group has."""
    shares = []
    for row, own in enumerate(formulas):
        others = {
            formula
            for other, found in enumerate(formulas)
            if other != row and groups[other] == groups[row]
            for formula in found
        }
        shares.append(sum(formula not in others for formula in own) / len(own) if own else 0.0)
    return shares
