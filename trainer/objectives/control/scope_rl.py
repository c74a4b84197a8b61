"""SCOPE-RL's side batch: right answers drawn at another temperature, as a term of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import AuxiliaryPlan, Statistic, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import log_ratio
from trainer.objectives.stages import Regulariser, Sampling
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class ScopeSampling(Sampling):
    """Side batch at another temperature (SCOPE-RL): kept out of the main loss, used by the SCOPE-RL term alone."""

    title: ClassVar[str] = "Side batch (SCOPE-RL)"
    paper: ClassVar[str] = "2510.08141"
    formula: ClassVar[str] = r"o' \sim \pi^{(T)} \text{ on a share of the prompts}"
    requires: ClassVar[frozenset[str]] = frozenset({"auxiliary_temperature", "scope_term"})
    type: Literal["scope_sampling"] = "scope_sampling"
    prompt_share: float = setting(0.25, help="Share of the prompts that are sampled again.", gt=0, le=1)

    def plan(self, step: Step) -> AuxiliaryPlan:
        return AuxiliaryPlan(self.prompt_share, step.knobs["auxiliary_temperature"])

    def compose(self, batch: TokenBatch, step: Step) -> TokenBatch:
        assert batch.auxiliary is not None
        assert batch.mask is not None
        return batch.replace(mask=batch.mask * ~batch.per_token(batch.auxiliary))


class ScopeTerm(Regulariser):
    """Side-batch term (SCOPE-RL).

    Adds alpha times the mean over side completions of [right] * mean over tokens of min(r, clip(r, 1 - low, 1 + high)):
    a clipped likelihood of right answers, whatever their group's rewards. r is taken at the training temperature.
    """

    title: ClassVar[str] = "Side-batch term"
    paper: ClassVar[str] = "2510.08141"
    formula: ClassVar[str] = (
        r"L \mathrel{-}= \frac{\alpha}{S'} \sum_{i'} \mathbf 1[o_{i'} \text{ right}]\,\frac{1}{|o_{i'}|} \sum_t "
        r"\min\bigl(r_t, \operatorname{clip}(r_t, 1-\epsilon_-, 1+\epsilon_+)\bigr)"
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob"})
    requires: ClassVar[frozenset[str]] = frozenset({"scope_sampling"})
    type: Literal["scope_term"] = "scope_term"
    alpha: float = setting(1 / 64, help="Weight of the side batch.", ge=0, le=10, knob="auxiliary_weight")
    right: float = setting(1.0, help="Reward from which a side completion counts as right.", ge=-1000, le=1000)

    def regularise(self, batch: TokenBatch, step: Step) -> Tensor:
        if batch.auxiliary is None or not bool(batch.auxiliary.any()):
            return batch.logprob.new_zeros(())
        ratio = log_ratio(batch).exp()
        clipped = ratio.clamp(1 - step.knobs.get("clip_low", 1.0), 1 + step.knobs.get("clip_high", 1e6))
        right = batch.auxiliary & (batch.reward >= self.right)
        if batch.valid is not None:
            right &= batch.valid
        tokens = batch.per_sequence_sum(torch.ones_like(ratio)).clamp(min=1)
        mean = batch.per_sequence_sum(torch.minimum(ratio, clipped)) / tokens
        step.metrics["objective/auxiliary_right_share"] = float(right.sum() / batch.auxiliary.sum())
        return -step.knobs["auxiliary_weight"] * torch.where(right, mean, 0).sum() / batch.auxiliary.sum()


PARTS = (
    ScopeSampling,
    ScopeTerm,
)
PRESETS = (
    Preset(
        name="scope-rl",
        title="SCOPE-RL",
        summary="The later form of AEPO: the side temperature follows the distance to the target, and right side "
        "answers enter as a small term of their own beside the GRPO loss. How many prompts are sampled again is "
        "our choice; the paper gives only the weight.",
        when="As AEPO, with smoother control.",
        formula=ScopeTerm.formula,
        reference=paper("Arbitrary Entropy Policy Optimization (later versions: SCOPE-RL)", "2510.08141", 2025),
        confidence="secondary",
        parts=[
            {"type": "scope_sampling"},
            GROUP,
            CLIP,
            {"type": "scope_term"},
            TOKENS,
            {"type": "auxiliary_temperature", "rule": "proportional"},
        ],
    ),
)
