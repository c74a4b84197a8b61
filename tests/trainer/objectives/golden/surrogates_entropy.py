"""HAPO, HTPO, agentic AEPO, ECHO, Critique-GRPO, COPO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from tests.trainer.objectives.golden.common import AGGREGATION, policy
from trainer.objectives import evaluate
from trainer.objectives.evaluate import token_batch
from trainer.objectives.layout import Layout
from trainer.objectives.surrogates.copo import COPO, answer_entropy, prompt_advantage
from trainer.objectives.surrogates.echo import EchoClip
from trainer.objectives.surrogates.hapo import HAPOClip, relative_entropy
from trainer.objectives.surrogates.htpo import entropy_split

Rows = list[list[float]]


def unit(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs with advantage 1 everywhere: the advantage that comes out is the factor."""
    return {**inputs, "advantages": torch.ones_like(torch.tensor(inputs["response_mask"])).tolist()}


def tokens(inputs: dict[str, Any]) -> tuple[Any, Layout]:
    """Return the inputs as a TokenBatch, and the layout that spreads its tokens."""
    named = {**inputs, "logprob": inputs["entropy"] if "entropy" in inputs else inputs["log_prob"]}
    named["group"] = named.pop("group_index", list(range(len(named["response_mask"]))))
    layout = Layout.of(named["logprob"], named["response_mask"], None)
    return token_batch(named, layout), layout


# -- HAPO -----------------------------------------------------------------------------------------------------------


def hapo_parts(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the released method; a recording that switches a piece off gets it at strength 0."""
    pivot, clip = given.get("entropy_pivot", 0.8), given.get("adaptive_clip", True)
    shift = given.get("adaptive_advantage", True)
    low, high = given.get("cliprange_low", 0.2), given.get("cliprange_high", 0.2)
    return [
        {
            "type": "hapo_clip",
            "variant": "released",
            "pivot": pivot,
            "strength": clip * given.get("clip_alpha", 1.0),
        },
        {
            "type": "hapo_weight",
            "variant": "released",
            "pivot": pivot,
            "strength": shift * given.get("adv_beta", 1.0),
        },
        {"type": "ppo_clip", "clip_low": low, "clip_high": high, "dual_clip": given.get("clip_ratio_c", 10.0)},
        AGGREGATION[given.get("loss_agg_mode", "token-mean")],
    ]


@case("hapo")
def hapo(recording: Recording) -> Iterator[Comparison]:
    given, expected, inputs = recording.settings, recording.outputs, recording.inputs
    mask = inputs["response_mask"]
    plain = {"type": "hapo_weight", "strength": 0.0}
    pooled = evaluate({"preset": "hapo", "parts": [plain]}, {**inputs, "entropy": inputs.get("entropy", mask)})
    for name in ("token_level_group_advantage", "token_level_group_average", "advantages", "advantage"):
        if name in expected:
            yield same("pooled advantage", pooled["advantage"], expected[name], recording.tolerance, mask)
    if "grpo_advantage" in expected:
        grouped = evaluate("grpo", inputs)["advantage"]
        yield same("group advantage", grouped, expected["grpo_advantage"], recording.tolerance, mask)
    if "h_hat" in expected:
        yield from hapo_ranges(recording)
    if "grad_log_prob" in expected:
        found = evaluate({"preset": "hapo", "parts": hapo_parts(given)}, inputs)
        yield from policy(recording, found)
        if "modulated_advantage" in expected:
            yield same(
                "shaped advantage", found["advantage"], expected["modulated_advantage"], recording.tolerance, mask
            )
        if "clipfrac" in expected:
            yield same("clip share", found["metrics"]["objective/clip_share"], expected["clipfrac"], 1e-6)


def hapo_ranges(recording: Recording) -> Iterator[Comparison]:
    """Compare h and the adapted clip ends."""
    given, expected, mask = recording.settings, recording.outputs, recording.inputs["response_mask"]
    batch, layout = tokens(recording.inputs)
    part = HAPOClip.model_validate(hapo_parts(given)[0])
    found = relative_entropy(batch, part.pivot, part.variant, part)
    yield same("h", layout.spread(found.tolist()), expected["h_hat"], recording.tolerance, mask)
    low, high = (torch.full_like(found, given[name]) for name in ("cliprange_low", "cliprange_high"))
    for name, ends in zip(("eps_low", "eps_high"), part.clip(batch, None, low, high), strict=True):
        if name in expected:
            yield same(name, layout.spread(ends.tolist()), expected[name], recording.tolerance, mask)


@case("formula__hapo_intended_h")
def hapo_described(recording: Recording) -> Iterator[Comparison]:
    batch, layout = tokens(recording.inputs)
    part = HAPOClip(pivot=recording.settings["pivot_quantile"])
    h = layout.spread(relative_entropy(batch, part.pivot, "described", part).tolist())
    yield same("h", h, recording.outputs["h_hat"], recording.tolerance, recording.inputs["response_mask"])
    # an unmoved ratio is inside the clip: low-entropy tokens have the factor 1 + h, high-entropy ones 1
    found = evaluate("hapo", unit(recording.inputs))["advantage"]
    factor = 1 + torch.tensor(recording.outputs["h_hat"], dtype=torch.float64).clamp(max=0)
    yield same("factor", found, factor, recording.tolerance, recording.inputs["response_mask"])


# -- HTPO -----------------------------------------------------------------------------------------------------------


def with_accuracy(inputs: dict[str, Any], rows: int = 20) -> dict[str, Any]:
    """Return the inputs in two groups whose accuracy makes them hard and easy as recorded.

    Empty completions, all wrong or all right, join the two groups; they have no token that counts.
    """
    width, hard = len(inputs["response_mask"][0]), [int(item) for item in inputs["hard"]]
    grown = {
        name: values + [[0.0] * width] * 2 * rows for name, values in inputs.items() if isinstance(values[0], list)
    }
    correct = [int(item) for item in inputs["correct"]]
    return {**grown, "group": hard + [1] * rows + [0] * rows, "correct": correct + [0] * rows + [1] * rows}


@case("htpo")
def htpo(recording: Recording) -> Iterator[Comparison]:
    given, expected, rows = recording.settings, recording.outputs, len(recording.inputs["correct"])
    part = {
        "type": "htpo",
        "variant": "released",
        "clip_low": given["clip_low"],
        "clip_high": given["clip_high"],
        "dual_clip": given["clip_ratio_c"],
        "high_share": given["high_entropy_ratio"],
        "lowest_share": given["clip_entropy_ratio1"],
        "highest_share": given["clip_entropy_ratio2"],
    }
    parts = [part, AGGREGATION[given["loss_agg_mode"]]]
    found = evaluate({"preset": "htpo", "parts": parts}, with_accuracy(recording.inputs))
    yield same("gradient", found["grad_logprob"][:rows], expected["grad_log_prob"], recording.tolerance)
    yield same("loss", found["loss"], expected["loss"], recording.tolerance)
    batch, layout = tokens(recording.inputs)
    split = entropy_split(batch.entropy, batch, *(part[f"{name}_share"] for name in ("high", "lowest", "highest")))
    names = {
        "high": "high_entropy_mask",
        "low": "low_entropy_mask",
        "lowest": "drop_lowest_mask",
        "highest": "drop_highest_mask",
    }
    for ours, theirs in names.items():
        if theirs in expected:
            yield same(ours, layout.spread(getattr(split, ours).double().tolist()), expected[theirs], 0)


# -- agentic AEPO, ECHO ----------------------------------------------------------------------------------------------


@case("aepo_agentic")
def agentic_aepo(recording: Recording) -> Iterator[Comparison]:
    given, expected, inputs = recording.settings, recording.outputs, recording.inputs
    strength = given["entropy_advantage_coef"]
    weight = {"type": "entropy_score_weight", "strength": strength}
    clip = {
        "type": "entropy_kept_clip",
        "clip_low": given["clip_low"],
        "clip_high": given["clip_high"],
        "dual_clip": given["clip_ratio_c"],
        "select": "low" if "third_party" in recording.name else "high",
    }
    objective = {"preset": "agentic-aepo", "parts": [weight, clip, AGGREGATION[given["loss_agg_mode"]]]}
    found, mask = evaluate(objective, inputs), inputs["response_mask"]
    yield from policy(recording, found)
    yield same("advantage", found["advantage"], expected["shaped_advantage"], recording.tolerance, mask)
    yield same("clip share", found["metrics"]["objective/clip_share"], expected["clipfrac"], 1e-6)
    score = (torch.tensor(evaluate(objective, unit(inputs))["advantage"]) - 1) / strength
    yield same("entropy score", score, expected["entropy_z"], recording.tolerance, mask)


@case("echo")
def echo(recording: Recording) -> Iterator[Comparison]:
    given, expected, mask = recording.settings, recording.outputs, recording.inputs["response_mask"]
    inputs = {name: value for name, value in recording.inputs.items() if name != "confidence"}
    inputs["top5_prob"] = recording.inputs["confidence"]
    shaping = {
        "type": "echo_advantage",
        "entropy_weight": given["alpha"],
        "confidence_weight": given["beta"],
        "limit": given["s_max"],
        "factor": given["mult_coeff"],
        "addend": given["add_coeff"],
    }
    found = evaluate({"preset": "echo", "parts": [shaping]}, inputs)
    yield same("advantage", found["advantage"], expected["advantages"], recording.tolerance, mask)
    for name, alone in (("entropy_z", "entropy_weight"), ("inverse_confidence_z", "confidence_weight")):
        one = {**shaping, "entropy_weight": 0.0, "confidence_weight": 0.0, "limit": 100.0, "factor": 0.5, "addend": 0.0}
        score = evaluate({"preset": "echo", "parts": [{**one, alone: 1.0}]}, unit(inputs))["advantage"]
        yield same(name, (torch.tensor(score) - 1) / 0.5, expected[name], recording.tolerance, mask)
    clip = EchoClip(
        variant="released",
        least=given["eps_min"],
        most=given["eps_max"],
        steepness=given["kappa"],
        window=given["tail_window"],
    )
    batch, _ = tokens(inputs)
    yield same("tail confidence", clip.tail(batch), expected["tail_confidence"], recording.tolerance)
    ends = clip.clip(batch, None, batch.logprob, batch.logprob)
    for width in ends:
        first = batch.per_token(torch.tensor(expected["clip_epsilon"], dtype=torch.float64))
        yield same("clip", width, first, recording.tolerance)


# -- Critique-GRPO, COPO ---------------------------------------------------------------------------------------------

SHAPES = {
    "no_reshape": {"shape": "identity"},
    "logp": {"shape": "log"},
    "p_logp": {"shape": "identity_log"},
    "square_root": {"shape": "power", "exponent": 0.5},
    "p_div_p_0.1": {"shape": "ratio", "gamma": 0.1},
    "p_div_p_0.3": {"shape": "ratio", "gamma": 0.3},
    "p_div_p_0.5": {"shape": "ratio", "gamma": 0.5},
}


@case("critique_grpo")
def critique_grpo(recording: Recording) -> Iterator[Comparison]:
    given, expected = recording.settings, recording.outputs
    name = given["off_policy_reshape"]
    shaping = {"shape": "power", "exponent": given.get("off_policy_reshape_pow_exp", 0.5)}
    shaping = SHAPES.get(name, shaping)
    clip = {
        "type": "ppo_clip",
        "clip_low": given["cliprange"],
        "clip_high": max(given["clip_upper_bound"], 1 + given["cliprange"]) - 1,
        "dual_clip": 0.0,
    }
    objective = {"preset": "critique-grpo", "parts": [clip, {"type": "policy_shaping", **shaping}]}
    inputs = {key: value for key, value in recording.inputs.items() if key != "prefix_mask"}
    foreign = torch.tensor(recording.inputs["prefix_mask"], dtype=torch.float64)
    inputs["off_policy"] = foreign.tolist()
    found = evaluate(objective, inputs)
    yield same("gradient", found["grad_logprob"], expected["grad_log_prob"], recording.tolerance)
    yield same("loss", found["loss"], expected["pg_loss"], recording.tolerance)
    mask = torch.tensor(inputs["response_mask"], dtype=torch.float64)
    for quantity, part in (("on_pg_loss", mask * (1 - foreign)), ("off_pg_loss", mask * foreign)):
        alone = evaluate(objective, {**inputs, "response_mask": part.tolist()})
        yield same(quantity, alone["loss"], expected[quantity], recording.tolerance)
    shaped = evaluate(objective, {**unit(inputs), "response_mask": (mask * foreign).tolist()})
    if "off_ratio_mean" in expected:
        yield same("mean of f", -shaped["loss"], expected["off_ratio_mean"], recording.tolerance)


MODES = {
    "no global": "local",
    "only global": "global",
    "only soft": "soft",
    "only forced": "forced",
    "only zero": "zero",
    "soft with forced": "soft_forced",
    "soft with zero": "soft_zero",
}


@case("copo")
def copo(recording: Recording) -> Iterator[Comparison]:
    given, expected = recording.settings, recording.outputs
    inputs = {name: value for name, value in recording.inputs.items() if name != "answers"}
    texts = recording.inputs["answers"]
    inputs["answer"] = [sorted(set(texts)).index(text) for text in texts]
    clip = {
        "type": "ppo_clip",
        "clip_low": given["clip_low"],
        "clip_high": given["clip_high"],
        "dual_clip": given["clip_ratio_c"],
    }

    def found(mode: str, given_inputs: dict[str, Any], **part: Any) -> dict[str, Any]:
        blend = {"type": "copo", "mode": mode, "consistency": given["reward_coef"], **part}
        return evaluate({"preset": "copo", "parts": [clip, AGGREGATION[given["loss_agg_mode"]], blend]}, given_inputs)

    mask, on_policy = inputs["response_mask"], {**inputs, "log_prob": inputs["old_log_prob"]}
    local, prompts = (found(mode, on_policy)["weight"] for mode in ("local", "global"))
    yield same("local advantage", local, expected["local_advantage"], recording.tolerance, mask)
    yield same("global advantage", prompts, expected["global_advantage"], recording.tolerance, mask)
    batch, _ = tokens(inputs)
    entropy = answer_entropy(batch, COPO())
    yield same("answer entropy", entropy, expected["answer_entropy_bits"], recording.tolerance)
    shifted = prompt_advantage(batch, entropy, consistent=given["reward_coef"])
    yield same("global advantage by completion", shifted, [row[0] for row in expected["global_advantage"]], 1e-5)
    losses: list[tuple[float, float]] = []
    for key, values in expected.items():
        if "|" not in key:
            continue
        name, numbers = key.split("|")
        b, k = (float(item.split("=")[1]) for item in numbers.split(","))
        outcome = found(MODES[name], inputs, middle=b, steepness=k)
        yield same(f"{key} gradient", outcome["grad_logprob"], values["grad_log_prob"], recording.tolerance)
        losses.append((outcome["loss"], values["loss"]))
    # together: in float32 some sums cancel to a thousandth of their terms
    ours, theirs = zip(*losses, strict=True)
    yield same("losses", ours, theirs, recording.tolerance)
