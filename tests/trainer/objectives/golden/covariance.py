"""Clip-Cov and KL-Cov, as in verl and as in the authors' first code."""

from __future__ import annotations

from collections.abc import Iterator

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from tests.trainer.objectives.golden.common import aggregation, clip, named, policy
from trainer.objectives import evaluate


@case("clip_cov", "clip_cov_original")
def clip_cov(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    # the first code calls the share of tokens clip_ratio and the ratio's ends cliprange
    part = {
        "type": "clip_cov",
        "share": named(given, "clip_cov_ratio", "clip_ratio", otherwise=2e-4),
        "lower": named(given, "clip_cov_lb", "clip_low", otherwise=1.0),
        "upper": named(given, "clip_cov_ub", "clip_high", otherwise=5.0),
    }
    ends = clip({name: value for name, value in given.items() if name != "clip_ratio"}, 1.0, 1.0) | {"dual_clip": 0.0}
    found = evaluate({"preset": "clip-cov", "parts": [part, ends, aggregation(recording)]}, recording.inputs)
    yield from policy(recording, found)
    recorded = recording.outputs.get("metrics", {})
    if "actor/ppo_kl" in recorded:
        yield same("KL", found["metrics"]["objective/old_kl"], recorded["actor/ppo_kl"], 1e-6)
    if "selected_mask" in recording.outputs and ends["clip_low"] == 1:  # the ratio clip, which also stops tokens, rests
        mask = recording.inputs["response_mask"]
        still = [[float(g == 0) for g in row] for row in found["grad_logprob"]]
        yield same("selected", still, recording.outputs["selected_mask"], 0, mask)


@case("kl_cov", "kl_cov_original")
def kl_cov(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    percent = named(given, "k_percent", "kl_cov_percent", "percent")
    count = {"share": named(given, "kl_cov_ratio", otherwise=2e-3)} if percent is None else {"percent": percent}
    part = {"type": "kl_cov", **count, "coefficient": named(given, "ppo_kl_coef", otherwise=1.0)}
    found = evaluate({"preset": "kl-cov", "parts": [part, aggregation(recording)]}, recording.inputs)
    yield from policy(recording, found)
