"""Head: what a model does to its logits after the output layer, read from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict


class Head(TypedDict):
    """Keyword arguments of linear_logprob_entropy: logits = softcap tanh(logit_scale (h W' + b) / softcap)."""

    logit_scale: float
    softcap: float | None


def head_of(config: Any) -> Head:
    """Return the scale and soft-cap that a transformers config (or a mapping) names.

    Known are `final_logit_softcapping` (Gemma), `logit_scale` (Cohere), `logits_scaling` (a divisor in Granite, a
    factor in HyperCLOVA X) and `lm_head_multiplier` (Falcon-H1). A model may do something else with its logits, so
    compare with them once.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    named = text if isinstance(text, Mapping) else vars(text)

    def number(name: str) -> float | None:
        value = named.get(name)
        return float(value) if isinstance(value, (int, float)) and value else None

    scaling = number("logits_scaling") or 1.0
    divides = not str(named.get("model_type") or getattr(text, "model_type", "")).startswith("hyperclovax")
    scale = (number("logit_scale") or 1.0) * (number("lm_head_multiplier") or 1.0)
    scale = scale / scaling if divides else scale * scaling
    return Head(logit_scale=scale, softcap=number("final_logit_softcapping"))
