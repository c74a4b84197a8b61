"""Which passes over the model a step takes, decided once a run and said in its `started` event. Imports no torch.

An objective compares the policy with itself at the start of the step. A pass without gradients gives these log-probs
and entropies; but where a step is one update, the numbers that sampling gave are of the same weights, and the pass
with gradients meets the policy anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.events import Choice
from trainer.statistics import MOMENTS, STATISTICS

if TYPE_CHECKING:
    from trainer.config import RunConfig
    from trainer.objectives.base import ObjectivePart
    from trainer.rollout.base import Caps

SAMPLED = frozenset({"logprob", "entropy", "entropy_grad", "old_logprob", "old_entropy", *MOMENTS})
ENTROPIES = frozenset({"entropy", "entropy_grad", "old_entropy"})
OWN_PASS = frozenset({"gradient_feature"})  # computed apart, whatever the log-probs come from


def needs_scoring(config: RunConfig) -> str:
    """Return why sampling alone cannot give what the objective reads, or ""."""
    if config.sampling.staleness:
        return "with sampling.staleness, other weights sampled than those at the step's start"
    updates = config.optimiser.minibatches_per_step
    if updates > 1:
        return f"a step takes {updates} updates, and the later ones are compared with its start"
    if config.model.lora.enabled and config.model.lora.dropout:
        return "dropout in the LoRA adapters makes the pass with gradients another policy"
    for part in config.objective.parts:
        if part.stage == "sampling":
            return f"{part.type} samples some completions at another temperature"
        if "engine_logprob" in part.reads():
            return f"{part.type} compares sampling with training"
        if lacking := sorted(_of_policy(part) - SAMPLED):
            return f"{part.type} reads {', '.join(lacking)}"
    bounds = config.sampling.engine == "vllm" and config.sampling.vllm.entropy == "bounds"
    if bounds and (name := acting_on_entropies(config)):
        return f"{name} acts on entropies, and with sampling.vllm.entropy = bounds sampling knows intervals alone"
    return ""


def acting_on_entropies(config: RunConfig) -> str:
    """Return the first part whose effect depends on entropies or moments, which must then be exact, or ""."""
    for part in config.objective.parts:
        read = part.reads()
        if part.stage == "controller" or read & set(MOMENTS) or (read & ENTROPIES and not part.blind):
            return part.type
    return ""


def old_logprobs(config: RunConfig, caps: Caps) -> Choice:
    """Choose where the log-probs at the start of a step come from: `score` or `engine`."""
    wanted = config.optimiser.old_logprobs
    if wanted == "engine" and not caps.exact_entropy and (name := acting_on_entropies(config)):
        return Choice(
            choice="score", why=f"{name} acts on entropies, of which sampling turned out to know bounds alone"
        )
    if wanted != "auto":
        return Choice(choice=wanted, why="set by optimiser.old_logprobs")
    if why := needs_scoring(config):
        return Choice(choice="score", why=why)
    if not caps.exact_entropy:
        return Choice(choice="score", why="sampling gives no exact entropy")
    if moments_wanted(config) and not caps.moments:
        return Choice(choice="score", why="sampling gives no moments of the distribution")
    seeing = sighted(config.objective.parts)
    if not seeing:
        return Choice(choice="engine", why="on-policy, no gradient of this objective depends on a log-prob or entropy")
    reference = [part.type for part in seeing if "ref_logprob" in part.reads()]
    if reference:  # rounding alone would be a divergence, and Adam makes a full step of the smallest gradient
        return Choice(choice="score", why=f"{reference[0]} compares two policies, so both take the same kind of pass")
    names = ", ".join(part.type for part in seeing)
    if caps.in_process and config.model.dtype == "float32":
        return Choice(
            choice="engine", why=f"{names}: sampling runs the same weights in float32, so nothing but rounding differs"
        )
    return Choice(choice="score", why=f"{names}: sampling rounds differently from training in {config.model.dtype}")


def entropy_estimate(passed: Choice, caps: Caps) -> Choice | None:
    """Say where entropies come from if sampling knows an interval alone; None where it knows them exactly."""
    if caps.exact_entropy:
        return None
    if passed.choice == "score":
        why = (
            "over the full vocabulary, by the pass that scores; while completions grow, bounds by the likeliest tokens"
        )
        return Choice(choice="exact", why=why)
    return Choice(
        choice="bounds", why="sampling saw only the likeliest tokens: each entropy lies in the interval they leave"
    )


def head_contract(config: RunConfig) -> Choice:
    """Choose how gradients pass the output layer."""
    if (wanted := config.resources.head_contract) != "auto":
        return Choice(choice=wanted, why="set by resources.head_contract")
    why = "each token's gradient is known beforehand, so its logits are computed once and never kept"
    return Choice(choice="fused", why=why)


def sighted(parts: Sequence[ObjectivePart]) -> list[ObjectivePart]:
    """Return the parts through which an on-policy gradient depends on statistics of the policy."""
    return [part for part in parts if _of_policy(part) and not part.blind]


def moments_wanted(config: RunConfig) -> bool:
    """Return whether the objective reads moments of the distribution."""
    return any(part.reads() & set(MOMENTS) for part in config.objective.parts)


def _of_policy(part: ObjectivePart) -> frozenset[str]:
    """Return the statistics of the policy, now or at the start of the step, that a part reads."""
    read = part.reads() - OWN_PASS
    infos = (STATISTICS[name] for name in read)
    return frozenset(info.name for info in infos if info.policy in ("current", "old") and info.supplier == "head")
