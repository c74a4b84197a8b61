"""CISPO, GSPO, SAPO, CE-GPPO, ASPO."""

from __future__ import annotations

from collections.abc import Iterator

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from tests.trainer.objectives.golden.common import AGGREGATION, policy
from trainer.objectives import evaluate


def aggregation(recording: Recording, otherwise: str) -> dict:
    """Return the aggregation a recording names; some say "(forced)" behind it."""
    return AGGREGATION[recording.settings.get("loss_agg_mode", otherwise).split(" ")[0]]


def ends(given: dict) -> dict:
    """Return the clip ends under the names recordings use for them."""
    named = {"clip_low": ("clip_ratio_low", "cliprange_low", "clip_low"),
             "clip_high": ("clip_ratio_high", "cliprange_high", "clip_high")}  # fmt: skip
    return {ours: given[theirs] for ours, names in named.items() for theirs in names if theirs in given}


def shares(recording: Recording, found: dict) -> Iterator[Comparison]:
    """Compare the clip share and the KL to the old policy where they were recorded."""
    recorded = recording.outputs.get("metrics", {})
    for ours, theirs in (("clip_share", "actor/pg_clipfrac"), ("old_kl", "actor/ppo_kl")):
        if theirs in recorded and f"objective/{ours}" in found["metrics"]:
            yield same(ours, found["metrics"][f"objective/{ours}"], recorded[theirs], 1e-6)


@case("cispo")
def cispo(recording: Recording) -> Iterator[Comparison]:
    part = {"type": "cispo", **ends(recording.settings)}
    found = evaluate({"preset": "cispo", "parts": [part, aggregation(recording, "token-mean")]}, recording.inputs)
    yield from policy(recording, found)
    yield same("KL", found["metrics"]["objective/old_kl"], recording.outputs["metrics"]["actor/ppo_kl"], 1e-6)


@case("gspo")
def gspo(recording: Recording) -> Iterator[Comparison]:
    part = {"type": "gspo", **ends(recording.settings)}
    mode = aggregation(recording, "seq-mean-token-mean")
    found = evaluate({"preset": "gspo", "parts": [part, mode]}, recording.inputs)
    yield from policy(recording, found)
    yield from shares(recording, found)


@case("sapo")
def sapo(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    names = {"tau_positive": ("tau_pos", "tau_positive"), "tau_negative": ("tau_neg", "tau_negative")}
    taus = {ours: given[theirs] for ours, pair in names.items() for theirs in pair if theirs in given}
    mode = aggregation(recording, "seq-mean-token-mean")
    found = evaluate({"preset": "sapo", "parts": [{"type": "sapo", **taus}, mode]}, recording.inputs)
    yield from policy(recording, found)


@case("ce_gppo")
def ce_gppo(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    part = {
        "type": "ce_gppo",
        **ends(given),
        "beta_low": given["gppo_loss_beta1"],
        "beta_high": given["gppo_loss_beta2"],
        "dual_clip": given["clip_ratio_c"],
    }
    found = evaluate({"preset": "ce-gppo", "parts": [part, aggregation(recording, "token-mean")]}, recording.inputs)
    yield from policy(recording, found)
    yield same("clip share", found["metrics"]["objective/clip_share"], recording.outputs["clipfrac"], 1e-6)


@case("aspo")
def aspo(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    parts = [
        {
            "type": "aspo",
            "clip_low": given["negative_low_entropy_clip_ratio_low"],
            "clip_high": given["positive_low_entropy_clip_ratio_high"],
            "cap_positive": given["positive_clip_ratio_c"],
            "cap_negative": given["negative_clip_ratio_c"],
        },
        {
            "type": "entropy_split_clip",
            "quantile": given["token_entropy_quantile"],
            "low": given["negative_high_entropy_clip_ratio_low"],
            "high": given["positive_high_entropy_clip_ratio_high"],
        },
        aggregation(recording, "token-mean"),
    ]
    found = evaluate({"preset": "aspo", "parts": parts}, recording.inputs)
    yield same("gradient", found["grad_logprob"], recording.outputs["grad_log_prob"], recording.tolerance)
    if not (recording.outputs["dual_neg"] or recording.outputs["dual_pos"]):  # at a cap the value is arbitrary
        yield same("loss", found["loss"], recording.outputs["loss"], recording.tolerance)
    for ours, theirs in (("clip_high_share", "clipfrac_upper"), ("clip_low_share", "clipfrac_lower")):
        yield same(ours, found["metrics"][f"objective/{ours}"], recording.outputs[theirs], 1e-6)
