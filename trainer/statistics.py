"""STATISTICS: every number an objective may read of a token or completion, declared once.

Each says over what it is taken (domain), whose it is (policy) and who supplies it. A part names what it reads; a run
whose objective reads something without a supplier is refused before it starts, while `evaluate` takes any of them from
recorded numbers. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Domain = Literal["token", "completion"]
Whose = Literal["current", "old", "engine", "reference", "teacher", "text", "judge", "buffer"]
Supplier = Literal["head", "reference pass", "engine", "text", "grading", "sampling", ""]

Statistic = str  # a key of STATISTICS


@dataclass(frozen=True)
class StatisticInfo:
    """One statistic.

    `policy` current: of the weights as they are in this update, re-read for each minibatch; old: of the weights at the
    start of the step. `supplier` "" means that the trainer cannot give it yet, and `missing` says what it would take.
    `option` names the settings its computation depends on (see `ObjectivePart.options`). `differentiable`: the loop
    carries a gradient with respect to it through the model. `width` True: a vector for each entry.
    """

    name: str
    help: str
    domain: Domain = "token"
    policy: Whose = "current"
    unit: str = ""
    supplier: Supplier = "head"
    missing: str = ""
    option: str = ""
    differentiable: bool = False
    width: bool = False
    core: bool = False  # a field of TokenBatch; the others live in TokenBatch.extra

    @property
    def available(self) -> bool:
        """Return whether a run can have it."""
        return bool(self.supplier)


def _core(name: str, help: str, **kind: object) -> StatisticInfo:
    return StatisticInfo(name, help, core=True, **kind)  # type: ignore[arg-type]


MOMENTS = ("sum_p2", "sum_p2_logp", "entropy_gain")  # of the distribution, from the same sweep over the logits
EMBEDDINGS = "a sentence encoder beside the trainer"
REPLAY = "rollouts kept from earlier steps and mixed into later ones"
TEACHER = "a second pass with the solution in the prompt"

STATISTICS: dict[str, StatisticInfo] = {
    info.name: info
    for info in (
        _core("logprob", "log-prob of the sampled token", unit="nats", differentiable=True),
        _core("entropy", "entropy over the full vocabulary", unit="nats"),
        _core("entropy_grad", "the same, and its gradient", unit="nats", differentiable=True),
        _core("old_logprob", "log-prob of the sampled token", unit="nats", policy="old"),
        _core("old_entropy", "entropy over the full vocabulary", unit="nats", policy="old"),
        _core(
            "engine_logprob",
            "log-prob of the sampled token in the engine's numbers, of the raw policy at the training temperature",
            unit="nats",
            policy="engine",
            supplier="engine",
        ),
        _core(
            "ref_logprob", "log-prob of the sampled token", unit="nats", policy="reference", supplier="reference pass"
        ),
        _core("sum_p2", "sum of squared probabilities over the vocabulary"),
        _core("sum_p2_logp", "sum of p^2 log p over the vocabulary", unit="nats"),
        StatisticInfo(
            "entropy_gain",
            "squared norm of the entropy's gradient by the logits: the first-order entropy change that a unit of "
            "entropy bonus causes",
            unit="nats²",
        ),
        StatisticInfo("max_logprob", "log-prob of the likeliest token", unit="nats"),
        StatisticInfo("mean_logit", "mean logit over the vocabulary, at the training temperature", policy="old"),
        StatisticInfo("logsumexp", "log of the sum of exponentiated logits", unit="nats", policy="old"),
        StatisticInfo("token_logit", "raw logit of the sampled token, before the temperature", policy="old"),
        StatisticInfo("top5_prob", "mean probability of the five likeliest tokens", policy="old"),
        StatisticInfo(
            "tempered_logprob",
            "log-prob of the sampled token at a second temperature",
            unit="nats",
            policy="old",
            option="second_temperature",
        ),
        StatisticInfo(
            "kept_logprob",
            "log-prob of the sampled token after tokens below min_p times the largest probability are removed; at most "
            "-1e4 where it is removed itself",
            unit="nats",
            policy="old",
            option="min_p",
        ),
        StatisticInfo(
            "nucleus_entropy",
            "entropy of the distribution cut to its nucleus and renormalised",
            unit="nats",
            option="top_p",
            differentiable=True,
        ),
        StatisticInfo(
            "tempered_entropy",
            "entropy at a second temperature",
            unit="nats",
            option="second_temperature",
            differentiable=True,
        ),
        StatisticInfo(
            "hellinger",
            "squared Hellinger distance to the reference policy, in [0, 1]",
            policy="reference",
            supplier="reference pass",
        ),
        StatisticInfo(
            "attention_entropy",
            "entropy of the attention row over log of its length, mean over heads and layers",
            policy="old",
            supplier="",
            missing="attention rows, which fused attention does not give",
        ),
        StatisticInfo(
            "gradient_feature",
            "mean gradient of the log-probs with respect to the last hidden state",
            domain="completion",
            policy="old",
            width=True,
        ),
        StatisticInfo(
            "embedding",
            "embedding of the response text",
            domain="completion",
            policy="judge",
            supplier="",
            missing=EMBEDDINGS,
            width=True,
        ),
        StatisticInfo(
            "answer",
            "number of the answer within its group: equal answers share one; -1 without an answer",
            domain="completion",
            policy="judge",
            supplier="grading",
        ),
        StatisticInfo(
            "correct", "whether the answer is right, 1 or 0", domain="completion", policy="judge", supplier="grading"
        ),
        StatisticInfo(
            "copied",
            "1 where the answer only repeats the question (Rouge-L precision above 0.8, or part of it), else 0",
            domain="completion",
            policy="text",
            supplier="text",
        ),
        StatisticInfo(
            "task",
            "number of the task the prompt belongs to; 0 throughout where a run trains one task",
            domain="completion",
            policy="text",
            supplier="sampling",
        ),
        StatisticInfo(
            "formula_novelty",
            "share of the response's formulas that no other response of the group has",
            domain="completion",
            policy="text",
            supplier="",
            missing="a parser of formulas in responses",
        ),
        StatisticInfo(
            "planning", "1 inside a strategic phrase, else 0", policy="text", supplier="text", option="phrases"
        ),
        StatisticInfo(
            "trigger",
            "1 where a reasoning trigger word begins, else 0",
            policy="text",
            supplier="text",
            option="triggers",
        ),
        StatisticInfo(
            "think_end",
            "position of the token that closes the thinking; -1 without one",
            domain="completion",
            policy="text",
            supplier="text",
            option="delimiter",
        ),
        StatisticInfo(
            "trajectory",
            "number of the trajectory the turn belongs to; every completion its own where there is one turn",
            domain="completion",
            policy="engine",
            supplier="sampling",
        ),
        StatisticInfo(
            "turn", "turn within the trajectory, from 0", domain="completion", policy="engine", supplier="sampling"
        ),
        StatisticInfo(
            "parent",
            "number of the trajectory it forks off; -1 for one drawn from the prompt",
            domain="completion",
            policy="engine",
            supplier="sampling",
        ),
        StatisticInfo(
            "fork_at",
            "tokens it shares with its parent",
            domain="completion",
            policy="engine",
            supplier="sampling",
        ),
        StatisticInfo(
            "off_policy",
            "1 on tokens this policy did not sample (refinements, demonstrations), else 0",
            policy="buffer",
            supplier="",
            missing="refined answers in the group, drawn under a critique",
        ),
        StatisticInfo(
            "replayed",
            "1 for a completion taken from an earlier step, else 0",
            domain="completion",
            policy="buffer",
            supplier="",
            missing=REPLAY,
        ),
        StatisticInfo(
            "recent_mean",
            "median over recent steps of the groups' mean rewards",
            domain="completion",
            policy="buffer",
            supplier="",
            missing=REPLAY,
        ),
        StatisticInfo(
            "recent_std",
            "median over recent steps of the standard deviations of the groups' rewards",
            domain="completion",
            policy="buffer",
            supplier="",
            missing=REPLAY,
        ),
        StatisticInfo(
            "teacher_logprob",
            "log-prob of the sampled token with the solution in the prompt",
            unit="nats",
            policy="teacher",
            supplier="",
            missing=TEACHER,
        ),
        StatisticInfo(
            "teacher_kl",
            "KL divergence from teacher to policy over the vocabulary, at tokens of key spans",
            unit="nats",
            policy="teacher",
            supplier="",
            missing=TEACHER,
            differentiable=True,
        ),
        StatisticInfo(
            "teacher_reverse_kl",
            "KL divergence from policy to teacher over the vocabulary, at tokens of error spans",
            unit="nats",
            policy="teacher",
            supplier="",
            missing=TEACHER,
            differentiable=True,
        ),
        StatisticInfo(
            "span",
            "1 in a key span of a right answer, -1 in an error span of a wrong one, else 0",
            policy="teacher",
            supplier="",
            missing=TEACHER,
        ),
        StatisticInfo(
            "log_partition",
            "learned log Z of the prompt",
            unit="nats",
            domain="completion",
            supplier="",
            missing="a value network on the prompt, trained beside the policy",
            differentiable=True,
        ),
    )
}


def unavailable(names: frozenset[str]) -> list[StatisticInfo]:
    """Return those of the named statistics that a run cannot have, in the order of the table."""
    return [info for name, info in STATISTICS.items() if name in names and not info.available]
