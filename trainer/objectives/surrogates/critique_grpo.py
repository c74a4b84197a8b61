"""Critique-GRPO: refined answers in the group, learnt from through a shaped probability instead of a ratio."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import Blend
from trainer.objectives.stock import GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class PolicyShaping(Blend):
    """Shaped off-policy tokens (Critique-GRPO, LUFFY).

    Tokens the policy did not sample have the loss -A f(p) of their probability p now, without ratio or clip; all others
    the surrogate's. With f = p / (p + gamma) unlikely tokens of good refinements are lifted most.
    """

    title: ClassVar[str] = "Shaped off-policy tokens"
    paper: ClassVar[str] = "2506.03106; 2504.14945"
    formula: ClassVar[str] = (
        r"x_t = -A_t f(p_t)\ \text{off-policy},\quad f(p) = \frac{p}{p+\gamma},\quad p_t = \pi(o_t)"
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({"logprob", "off_policy"})
    type: Literal["policy_shaping"] = "policy_shaping"
    shape: Literal["ratio", "identity", "log", "identity_log", "power"] = setting(
        "ratio",
        help="f: p / (p + gamma), p itself, log p, their sum, or p to an exponent (0.5 is the square root).",
    )
    gamma: float = setting(0.1, help="Probability at which f is a half.", gt=0, le=10, show_if={"shape": "ratio"})
    exponent: float = setting(0.5, help="Exponent of p.", gt=0, le=10, show_if={"shape": "power"})
    log_weight: float = setting(
        1.0, help="Factor of log p.", ge=0, le=10, advanced=True, show_if={"shape": ["log", "identity_log"]}
    )

    def blend(self, batch: TokenBatch, step: Step, loss: Callable[[TokenBatch], Tensor]) -> Tensor:
        foreign = statistic(batch, "off_policy", self) > 0
        values = -batch.need("advantage") * self.shaped(batch.logprob)
        mask = torch.ones_like(batch.logprob) if batch.mask is None else batch.mask
        step.metrics["objective/off_policy_share"] = float((foreign * mask).sum() / mask.sum().clamp(min=1))
        return torch.where(foreign, values, loss(batch))

    def shaped(self, logprob: Tensor) -> Tensor:
        """Return f(p), [N], differentiable."""
        p = logprob.exp()
        if self.shape == "ratio":
            return p / (p + self.gamma)
        if self.shape == "power":
            return (self.exponent * logprob).exp()
        return {"identity": p, "log": self.log_weight * logprob, "identity_log": p + self.log_weight * logprob}[
            self.shape
        ]


PARTS = (PolicyShaping,)
PRESETS = (
    Preset(
        name="critique-grpo",
        title="Critique-GRPO",
        summary="Failed answers are refined under a critique, and the refinements join the group. Their tokens are not "
        "the policy's own, so they are learnt through p / (p + 0.1), which lifts unlikely tokens of good refinements "
        "and leaves known ones alone; entropy is renewed from outside.",
        when="With refined answers in the group. The trainer cannot draw them yet, so a run is refused; recorded "
        "batches can be evaluated.",
        formula=PolicyShaping.formula,
        reference=paper(
            "Critique-GRPO: Advancing LLM Reasoning with Natural Language and Numerical Feedback", "2506.03106", 2025
        ),
        confidence="code",
        parts=[
            GROUP,
            {"type": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 0.0},
            {"type": "policy_shaping"},
            TOKENS,
        ],
    ),
)
