"""What cannot be combined between how completions are drawn and what the objective makes of them. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.objectives.ratio import RatioSurrogate
from trainer.objectives.stages import Decoding

if TYPE_CHECKING:
    from trainer.config import RunConfig
    from trainer.rollout.base import Caps

WHOLE = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0}  # settings that leave every token possible


def with_correction(config: RunConfig) -> str:
    """Return why the objective's engine correction does not fit how completions are drawn, field first, or "".

    The correction weighs a token by the policy in the trainer's numbers over the policy in the engine's. Under a
    modifier that only changes temperatures both are bent alike and the weight still says how the engine rounds. Where
    tokens are left out it says nothing of how the token was drawn: weights would be applied to the wrong distribution.
    """
    surrogate = next(part for part in config.objective.parts if part.stage == "surrogate")
    if not isinstance(surrogate, RatioSurrogate) or surrogate.correction == "off":
        return ""
    off = f'set correction = "off" in {surrogate.type}'
    for name, whole in WHOLE.items():
        if (value := getattr(config.sampling, name)) != whole:
            return (
                f"sampling.{name}: {surrogate.type} weighs every token as drawn from the whole policy, and "
                f"{name} = {value:g} draws from a part of it; set it to {whole:g}, or {off}"
            )
    for part in config.objective.parts:
        if isinstance(part, Decoding) and part.leaves_out:
            return (
                f"objective.parts: {surrogate.type} weighs every token as drawn from the whole policy, which would "
                f"undo what {part.type} does; remove it, or {off}"
            )
        if part.stage == "sampling":
            return (
                f"objective.parts: {part.type} draws some completions at another temperature, for which there is no "
                f"weight; remove it, or {off}"
            )
    return ""


def beyond_plain(config: RunConfig) -> tuple[str, str] | None:
    """Return what of a run an engine that draws by itself cannot do, and how to do without, as halves of a sentence.

    Such an engine draws from the whole policy and tells log-probs and entropies. None where that is enough.
    """
    for name, whole in WHOLE.items():
        if getattr(config.sampling, name) != whole:
            return f"sampling.{name} does not", f"remove sampling.{name}"
    for part in config.objective.parts:
        if isinstance(part, Decoding):
            return f"{part.type} does not", f"remove {part.type}"
    rollout = config.objective.rollout
    return rollout.beyond_plain() if rollout else None


def with_bounds(config: RunConfig) -> str:
    """Return why vLLM cannot draw the completions by itself, field first, or ""."""
    sampling = config.sampling
    if sampling.engine != "vllm" or sampling.vllm.entropy != "bounds" or not (found := beyond_plain(config)):
        return ""
    what, fix = found
    return f"sampling.vllm.entropy: bounds lets vLLM draw from the whole policy, and {what}; choose exact, or {fix}"


def with_engine(config: RunConfig, caps: Caps) -> str:
    """Return why a started engine, which may do less than its config hoped for, does not fit, field first, or ""."""
    if caps.modifiers or not (found := beyond_plain(config)):
        return ""
    what, fix = found
    return (
        "sampling.engine: vLLM draws from the whole policy by itself here, because its sampler tap failed its test "
        f"or its server was started with bounds, and {what}; choose hf, or {fix}"
    )
