"""The charts picked by hand: which metrics stand together, and how each is drawn (docs/events.md names the metrics)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.objectives import PARTS
from webapp.runs.models import Run

ENTROPY_KNOB, ENTROPY_CHART = "entropy_target", "entropy"


def line(name: str, label: str, role: str = "line") -> dict[str, str]:
    """Return one metric of a chart; roles: line, low and high (a band), least and most (bounds), target, stack."""
    return {"name": name, "label": label, "role": role}


def panels(run: Run, plan: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the overview charts of a run in order; `plan` is how its newest attempt computes (trainer/passes.py)."""
    bounds = (plan or {}).get("entropy", {}).get("choice") == "bounds"
    k = run.config.get("evaluation", {}).get("samples_per_prompt", 16)
    rollouts = [_panel("rollouts", "Generated for each trained token", "tokens", line("rollout/overhead", "generated"))]
    mismatch = [
        _panel(
            "mismatch", "Engine against trainer", "nats",
            line("mismatch/mean_abs", "mean difference"), line("mismatch/k3", "k3"), line("sync/probe", "probe"),
        )
    ]  # fmt: skip
    return [
        _panel("reward", "Reward", "", line("reward/mean", "mean")),
        _panel(
            ENTROPY_CHART, "Entropy", "nats, between top-k bounds" if bounds else "nats",
            line("entropy/mean", "mean"), line("entropy/p10", "p10", "low"), line("entropy/p90", "p90", "high"),
            line("entropy/bounds_low", "mean is at least", "least"), line("entropy/bounds_high", "at most", "most"),
            line("entropy/target_low", "target", "target"), line("entropy/target_high", "target high", "target"),
        ),
        _panel("distinct", "Distinct right answers", "per prompt", line("reward/distinct", "distinct")),
        _panel(
            "evaluation", "Evaluation", "share of held-out prompts",
            line(f"evaluation/avg@{k}", f"avg@{k}"), line(f"evaluation/pass@{k}", f"pass@{k}"),
            line(f"evaluation/maj@{k}", f"maj@{k}"), line("evaluation/greedy", "greedy"),
        ),
        _panel("length", "Response length", "tokens", line("length/mean", "mean"), line("length/max", "max")),
        *(rollouts if _plans_rollouts(run) else []),
        _panel("clip", "Clip share", "of tokens", line("clip/share", "clipped")),
        *(mismatch if _generates_apart(run) else []),
        _panel("gradient", "Gradient norm", "before clipping", line("grad/norm", "norm")),
        _panel("kl", "KL", "nats", line("kl/old", "to the step’s start"), line("kl/ref", "to the reference")),
        _panel(
            "memory", "Memory", "GiB, the most so far",
            line("memory/peak_bytes", "peak"), line("memory/predicted_bytes", "predicted", "target"),
            line("memory/weights_bytes", "weights"), line("memory/optimiser_bytes", "optimiser"),
            line("memory/activations_bytes", "activations"), line("memory/logits_bytes", "logits"),
        ),
        _panel("time", "Step time", "seconds", *(line(f"time/{part}", part, "stack") for part in TIMES), kind="stack"),
    ]  # fmt: skip


def _generates_apart(run: Run) -> bool:
    """Return whether completions come from an engine with weights and numbers of its own."""
    sampling = run.config.get("sampling", {})
    return sampling.get("engine", "hf") != "hf" or bool(sampling.get("server", {}).get("enabled"))


def _plans_rollouts(run: Run) -> bool:
    """Return whether a part of the objective decides what is generated, so that more may be than what is trained on."""
    kinds = [part.get("type") for part in run.config.get("objective", {}).get("parts", [])]
    return any(PARTS[kind].stage == "rollout" for kind in kinds if kind in PARTS)


# Evaluations and checkpoints happen now and then; in a stack they would tear every other step.
TIMES = ("sample", "reward", "score", "update")


def _panel(panel: str, title: str, unit: str, *series: dict[str, str], kind: str = "lines") -> dict[str, Any]:
    return {"id": panel, "title": title, "unit": unit, "kind": kind, "series": list(series)}
