"""80/20, Lp-Reg, DCPO, SIREN, EPO, Light-IF; statistics of recorded logits are derived here, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from tests.trainer.objectives.golden.common import aggregation, clip, named, policy
from trainer.kernels import EXTRAS
from trainer.objectives import evaluate
from trainer.objectives.selection.epo import PREFIX, phase_weight

ESTIMATORS = {"low_var_kl": "k3", "mse": "k2", "kl": "k1"}


def doubles(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_softmax(logits: Any, temperature: float = 1.0) -> torch.Tensor:
    return (doubles(logits) / temperature).log_softmax(-1)


def pick(logp: torch.Tensor, actions: Any) -> torch.Tensor:
    """Return the entry of each position's action, [S, T]."""
    return logp.gather(-1, torch.tensor(actions)[..., None]).squeeze(-1)


def silent(inputs: dict[str, Any], like: str) -> dict[str, Any]:
    """Return the inputs with advantages of zero, so that a regulariser is all that is left of the loss."""
    return {**inputs, "advantages": [[0.0] * len(row) for row in inputs[like]]}


@case("beyond_80_20")
def high_entropy_mask(recording: Recording) -> Iterator[Comparison]:
    given, recorded = recording.settings, recording.outputs
    quantile = named(given, "threshold_quantile", "quantile")
    known = [v for name, v in given.items() if "clip" not in name and isinstance(v, float) and 0 < v < 1]
    share = 1 - quantile if quantile is not None else next(iter(known), 0.2)
    counted = "lpreg" in recording.name
    parts = [{"type": "top_entropy", "share": share}]
    if counted:  # with the loss of that code
        parts += [clip(given, 0.2, 0.28) | {"dual_clip": 0.0}, aggregation(recording)]
    preset = "top-entropy-count" if counted else "top-entropy-mask"
    found = evaluate({"preset": preset, "parts": parts}, recording.inputs)
    mask = named(recorded, "entropy_mask", "selected_mask", "mask", "new_response_mask", "response_mask")
    if mask is not None:
        yield same("mask", found["mask"], mask, 0)
    if "grad_log_prob" in recorded:
        yield from policy(recording, found)
    else:
        yield same("weight", found["weight"], mask, 0)  # advantage 1 where none is given


@case("lp_reg")
def lp_reg(recording: Recording) -> Iterator[Comparison]:
    given, inputs, recorded = recording.settings, recording.inputs, recording.outputs
    logp = log_softmax(inputs["old_logits"])
    kept = logp >= logp.amax(-1, keepdim=True) + doubles(given["minp_p_threshold"]).log()
    target = pick(torch.where(kept, doubles(inputs["old_logits"]), -1e4).log_softmax(-1), inputs["actions"])
    yield same("target", target, recorded["target_log_prob"], recording.tolerance, inputs["response_mask"])
    rows = doubles(inputs["old_logits"]).flatten(0, 1)
    chosen = torch.tensor(inputs["actions"]).flatten()
    kernel = EXTRAS["kept_logprob"](rows, chosen, doubles(1.0), {"min_p": given["minp_p_threshold"]})
    yield same("target, by the kernel", kernel.reshape(target.shape), target, 1e-12)
    part = {
        "type": "low_probability",
        "min_p": given["minp_p_threshold"],
        "share_negative": given["logp_neg_k_percent"],
        "share_positive": given["logp_pos_k_percent"],
        "coefficient": given["ppo_kl_coef"],
        "estimator": ESTIMATORS.get(given["kl_type"], given["kl_type"]),
    }
    parts = [part, clip(given, 1.0, 9.0), aggregation(recording)]
    found = evaluate({"preset": "lp-reg", "parts": parts}, {**inputs, "kept_logprob": target.tolist()})
    yield from policy(recording, found)
    if "clipfrac" in recorded:
        yield same("clip share", found["metrics"]["objective/clip_share"], recorded["clipfrac"], 1e-6)


@case("dcpo")
def dcpo(recording: Recording) -> Iterator[Comparison]:
    given, inputs, recorded = recording.settings, recording.inputs, recording.outputs
    control = {
        "type": "tempered_control",
        "target": given["entropy_base"],
        "hot": given["T_high"],
        "cold": given["T_low"],
    }
    part = {"type": "tempered_advantage", "cap": given["alpha_cap"], "right": given["score_threshold"]}
    objective = {"preset": "dcpo", "parts": [part, control]}
    history = [{"entropy": 9.0, "entropy_sampled": inputs["previous_step_entropy"]}]
    old = pick(log_softmax(inputs["logits"]), inputs["actions"])
    blank = {name: old.tolist() for name in ("logprob", "old_logprob", "tempered_logprob")}
    temperature = evaluate(objective, {**blank, "history": history})["knobs"]["second_temperature"]
    tempered = pick(log_softmax(inputs["logits"], temperature), inputs["actions"])
    mask = inputs["response_mask"]
    yield same("log-prob", old, recorded["old_log_probs"], recording.tolerance, mask)
    yield same("tempered log-prob", tempered, recorded["old_log_probs_t"], recording.tolerance, mask)
    batch = {
        **blank,
        "tempered_logprob": tempered.tolist(),
        "advantages": inputs["grpo_advantages"],
        "token_level_scores": inputs["token_level_scores"],
        "response_mask": mask,
        "history": history,
    }
    found = evaluate(objective, batch)
    yield same("alpha", found["metrics"]["objective/tempered_share"], recorded["alpha"], 1e-6)
    yield same("advantage", found["advantage"], recorded["mixed_advantages"], recording.tolerance, mask)


def nucleus(logits: torch.Tensor, top_p: float, *, crossing: bool) -> torch.Tensor:
    """Return the nucleus entropy of each position, [S, T], written apart from the kernel: by a threshold on p."""
    p = logits.softmax(-1)
    with torch.no_grad():
        ahead = (p[..., None, :] * (p[..., None, :] > p[..., :, None])).sum(-1)  # mass of the likelier tokens
        kept = (ahead if crossing else ahead + p) < top_p
    part = p * kept
    q = part / (part.sum(-1, keepdim=True) + 1e-12)
    return -(q * (q + 1e-12).log()).sum(-1)


@case("siren")
def siren(recording: Recording) -> Iterator[Comparison]:
    given, inputs, recorded = recording.settings, recording.inputs, recording.outputs
    logits, mask = doubles(inputs["logits"]).requires_grad_(), inputs["response_mask"]
    entropy = nucleus(logits, given["entropy_topp"], crossing=False)
    yield same("nucleus entropy", entropy.detach(), recorded["topp_entropy"], recording.tolerance, mask)
    rows, first = logits.detach().flatten(0, 1), torch.zeros(logits.shape[:-1], dtype=torch.long).flatten()
    kernel = EXTRAS["nucleus_entropy"](rows, first, doubles(1.0), {"top_p": given["entropy_topp"]})
    yield same("nucleus entropy, by the kernel", kernel.reshape(entropy.shape), entropy.detach(), 1e-12, mask)
    part = {
        "type": "peak_entropy",
        "coefficient": given["entropy_coeff"],
        "top_p": given["entropy_topp"],
        "quantile": given["mask_ratio"],
        "anchor": given["entropy_anchor"],
    }
    batch = {"nucleus_entropy": entropy.detach().tolist(), "response_mask": mask}
    found = evaluate({"preset": "siren", "parts": [part]}, silent(batch, "response_mask"))
    yield same("mean", found["metrics"]["objective/peak_entropy"], recorded["aggregated_entropy"], recording.tolerance)
    yield same("loss", found["loss"], recorded["reg_loss"], recording.tolerance)
    slope = doubles(found["grad_extra"]["nucleus_entropy"])
    yield same("peaks", (slope != 0).double(), recorded["token_mask_second"], 0)
    (gradient,) = torch.autograd.grad((entropy * slope).sum(), logits)
    yield same("gradient by logits", gradient, recorded["grad_logits"], recording.tolerance)


@case("epo")
def epo(recording: Recording) -> Iterator[Comparison]:
    given, inputs, recorded = recording.settings, recording.inputs, recording.outputs
    part = {
        "type": "entropy_smoothing",
        "variant": "released",
        "mode": "token" if given["mode"] == "token" else "completion",
        "low": given["min_ratio"],
        "high": given["max_ratio"],
        "price": given["out_range_penalty"],
        "coefficient": given["entropy_coeff"],
        "smoothing": given["entropy_smooth_coeff"],
        "weight": given["epoch_weight"],
    }
    past = {f"{PREFIX}{turn}": value for turn, value in enumerate(inputs["entropy_history"])}
    batch = {
        "entropy": inputs["entropy"],
        "response_mask": inputs["response_mask"],
        "turn": inputs["rollout_step"],
        "history": [{"entropy": 1.0, "metrics": past}] if past else [],
    }
    parts = [part, {"type": "epo_phases", "fading": False}, aggregation(recording)]
    found = evaluate({"preset": "epo", "parts": parts}, silent(batch, "entropy"))
    yield same("loss", found["loss"], recorded["regulariser_loss"], recording.tolerance)
    yield same("gradient by entropy", found["grad_entropy"], recorded["grad_entropy"], recording.tolerance)


@case("epo__epoch_weight")
def epo_weight(recording: Recording) -> Iterator[Comparison]:
    horizon = named(recording.settings, "K", "horizon", "total_epochs", "max_epoch", "total_epoch", otherwise=150)
    both = {**recording.inputs, **recording.outputs}
    steps = named(both, "epochs", "epoch", "steps", "step", "k", "current_epoch")
    recorded = named(both, "weights", "weight", "epoch_weight", "epoch_weights", "w")
    if steps is None:  # a table of step: weight
        steps, recorded = zip(*((int(name), value) for name, value in recording.outputs.items()), strict=True)
    found = (
        [phase_weight(step, horizon) for step in steps] if not isinstance(steps, int) else phase_weight(steps, horizon)
    )
    yield same("weight", found, recorded, recording.tolerance)


@case("light_if")
def light_if(recording: Recording) -> Iterator[Comparison]:
    given, recorded = recording.settings, recording.outputs
    part = {
        "type": "covariance_bonus",
        "variant": "released",
        "coefficient": -1.0,  # the recording is of the weighted entropy itself; the loss subtracts it
        "gain": given["cov_alpha"],
        "gain_cap": given["clip_cov_ub"],
    }
    # the importance ratio of the policy loss would add the advantage's own gradient: it is taken off below
    found = evaluate({"preset": "light-if", "parts": [part, aggregation(recording)]}, recording.inputs)
    plain = evaluate({"preset": "grpo", "parts": [aggregation(recording)]}, recording.inputs)
    gradient = doubles(found["grad_logprob"]) - doubles(plain["grad_logprob"])
    yield same("entropy loss", found["loss"] - plain["loss"], recorded["entropy_loss"], recording.tolerance)
    yield same("gradient by log-prob", gradient, recorded["grad_log_prob"], recording.tolerance)
    yield same("gradient by entropy", found["grad_entropy"], recorded["grad_entropy"], recording.tolerance)
    yield same("mean weight", found["metrics"]["objective/bonus_weight"], recorded["mean_weight"], 1e-6)
