"""STEER, Clip_B, Clip_V, ERC and the discriminator's baseline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from tests.trainer.objectives.golden.common import aggregation, clip, named, policy
from trainer.batch import TokenBatch
from trainer.objectives import evaluate
from trainer.objectives.entropy_change.first_order import baseline, discriminator


def doubles(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def moments(logits: Any, temperature: float = 1.0) -> dict[str, list]:
    """Return what the kernel would say of [S][T][V] logits, in float64."""
    logp = (doubles(logits) / temperature).log_softmax(-1)
    p = logp.exp()
    found = {"entropy": -(p * logp).sum(-1), "sum_p2": p.square().sum(-1), "sum_p2_logp": (p.square() * logp).sum(-1)}
    return {name: value.tolist() for name, value in found.items()}


@case("steer")
def steer(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    part = {
        "type": "steer",
        "shape": "linear" if given["linear"] else "exponential",
        "weight_low": named(given, "token_weight_min", otherwise=0.8),
        "weight_high": named(given, "token_weight_max", otherwise=1.2) if given["linear"] else 1.2,
    }
    parts = [part, clip(given, 0.2, 0.28, 10.0), aggregation(recording)]
    found = evaluate({"preset": "steer", "parts": parts}, recording.inputs)
    advantage, mask = doubles(recording.inputs["advantages"]), recording.inputs["response_mask"]
    mask = (doubles(mask) * (advantage != 0)).tolist()  # elsewhere the weight does not show
    weights = doubles(found["advantage"]) / torch.where(advantage == 0, 1.0, advantage)
    yield same("weights", weights, recording.outputs["token_weights"], recording.tolerance, mask)
    yield from policy(recording, found)
    yield same("clip share", found["metrics"]["objective/clip_share"], recording.outputs["clipfrac"], 1e-6)


def entropy_clip(recording: Recording, part: dict, inputs: dict) -> Iterator[Comparison]:
    """Compare advantages, mask and shares that Clip_B and Clip_V have in common."""
    normaliser = {"type": "group_norm", "epsilon": named(recording.settings, "epsilon", otherwise=1e-6)}
    found = evaluate({"preset": part["type"].replace("_", "-"), "parts": [part, normaliser]}, inputs)
    recorded, mask = recording.outputs["metrics"], doubles(recording.inputs["response_mask"])
    yield same("advantage", found["advantage"], recording.outputs["advantages"], recording.tolerance, mask)
    yield same("mask", found["mask"], recording.outputs["new_response_mask"], 0)
    gone, advantage = mask - doubles(found["mask"]), doubles(recording.outputs["advantages"])
    sides = {
        "frac_clipped": mask > 0,
        "frac_clipped_pos": advantage * mask > 0,
        "frac_clipped_neg": advantage * mask < 0,
    }
    for name, side in sides.items():
        share = (gone * side).sum() / side.sum().clamp(min=1)
        yield same(name, share, recorded[name], recording.tolerance)
    for theirs, ours in {"ES": "discriminator_mean", "stdD": "entropy_change_std"}.items():
        if theirs in recorded:
            yield same(theirs, found["metrics"][f"objective/{ours}"], recorded[theirs], recording.tolerance)
    if "varS" in recorded:
        spread = found["metrics"]["objective/discriminator_std"]
        yield same("varS", spread**2, recorded["varS"], recording.tolerance)


@case("clip_b")
def clip_b(recording: Recording) -> Iterator[Comparison]:
    yield from entropy_clip(recording, {"type": "clip_b", "threshold": recording.settings["mu"]}, recording.inputs)


@case("clip_v")
def clip_v(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    known = moments(recording.inputs["logits"])
    found = doubles(known["entropy"]) * doubles(known["sum_p2"]) + doubles(known["sum_p2_logp"])
    yield same("N", found, recording.inputs["N"], recording.tolerance, recording.inputs["response_mask"])
    inputs = {**known, **{name: value for name, value in recording.inputs.items() if name not in ("N", "logits")}}
    part = {"type": "clip_v", "threshold": given["mu"], "most": given["max_frac"]}
    yield from entropy_clip(recording, part, inputs)


@case("entropy_discriminator")
def entropy_discriminator(recording: Recording) -> Iterator[Comparison]:
    logits = doubles(recording.inputs["logits"]) / named(recording.settings, "temperature", otherwise=1.0)
    rows = logits.reshape(-1, logits.shape[-1])
    count = rows.shape[0]
    actions = recording.inputs.get("actions")
    chosen = torch.zeros(count, dtype=torch.long) if actions is None else torch.tensor(actions).reshape(-1)
    batch = TokenBatch(
        logprob=rows.log_softmax(-1).gather(1, chosen[:, None]).squeeze(1),
        sequence=torch.zeros(count, dtype=torch.long),
        position=torch.arange(count),
        group=torch.zeros(1, dtype=torch.long),
        reward=torch.zeros(1, dtype=torch.float64),
        length=torch.tensor([count]),
        **{name: doubles(value) for name, value in moments(rows.tolist()).items()},
    )
    ours = {"N": baseline(batch), "baseline_N": baseline(batch), "S": discriminator(batch)}
    for name in ours.keys() & recording.outputs.keys():
        yield same(name, ours[name].reshape(logits.shape[:-1]), recording.outputs[name], recording.tolerance)


@case("erc")
def erc(recording: Recording) -> Iterator[Comparison]:
    given, gppo = recording.settings, "gppo" in recording.name
    ends = clip(given, 0.2, 0.2 if gppo else 0.28, 10.0)
    if gppo:
        betas = {"beta_low": named(given, "beta1", otherwise=1.0), "beta_high": named(given, "beta2", otherwise=1.0)}
        ends = {**ends, **betas, "type": "ce_gppo"}
    band = {"type": "entropy_ratio_clip", "low": given["entropy_mask_low"], "high": given["entropy_mask_high"]}
    preset, rest = "gppo-erc" if gppo else "erc", [ends, aggregation(recording)]
    found = evaluate({"preset": preset, "parts": [band, *rest]}, recording.inputs)
    recorded = recording.outputs
    yield same("gradient", found["grad_logprob"], recorded["grad_log_prob"], recording.tolerance)
    yield same("mask", found["mask"], recorded["keep_mask"], 0)
    # masked tokens keep their value in the recorded loss and lose only its gradient; here they lose both
    whole = evaluate({"preset": "grpo", "parts": rest}, recording.inputs)
    yield same("loss", whole["loss"], recorded["loss"], recording.tolerance)
    share = found["metrics"]["objective/entropy_ratio_clip_kept_share"]
    yield same("share in band", share, recorded["entropy_in_band_fraction"], 1e-6)
