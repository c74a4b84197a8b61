"""KL-Cov: hold the tokens whose update would cost the most entropy near the policy that sampled them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step
from trainer.objectives.covariance.estimate import budget, covariance
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import log_ratio
from trainer.objectives.stages import TokenPenalty
from trainer.objectives.stock import GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class KLCov(TokenPenalty):
    """KL-Cov.

    The tokens with the largest covariance of advantage and log-prob pay coefficient times |log ratio| to the step-start
    policy. The authors use it with the unclipped ratio. In the first update on fresh rollouts its gradient is zero:
    it works with several minibatches per step.
    """

    title: ClassVar[str] = "KL-Cov"
    paper: ClassVar[str] = "2505.22617"
    formula: ClassVar[str] = (
        r"x_t = -A_t r_t + \kappa\, \mathbb 1[t \in \operatorname{top}_k c]\, |\ell_t - \ell^{\text{old}}_t|,\quad "
        r"c_t = (A_t - \bar A)(\ell_t - \bar\ell)"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob"})
    type: Literal["kl_cov"] = "kl_cov"
    share: float = setting(2e-3, help="Share of all tokens that pay, at least one token.", gt=0, le=1)
    percent: float = setting(
        0.0,
        help="Count in percent of the tokens as the authors' first code does, instead of `share`; 0 uses the share.",
        unit="%",
        ge=0,
        le=100,
        advanced=True,
    )
    coefficient: float = setting(1.0, help="Price of a nat of log ratio.", ge=0, le=1000, knob="kl_cov_coefficient")

    def penalty(self, batch: TokenBatch, step: Step) -> Tensor:
        values, counts, number = covariance(batch)
        size = min(self._budget(number), number)
        chosen = values.masked_fill(~counts, -torch.inf).topk(size).indices
        selected = torch.zeros_like(values).index_fill(0, chosen, 1)
        step.metrics["objective/kl_cov_share"] = size / max(number, 1)
        return step.knobs["kl_cov_coefficient"] * selected * log_ratio(batch).abs()

    def _budget(self, tokens: int) -> int:
        """Return how many tokens pay; the percent is capped by the number of tokens, as in the authors' code."""
        if not self.percent:
            return budget(self.share, tokens)
        return max(1, int(tokens * min(self.percent, tokens) / 100))


PARTS = (KLCov,)
PRESETS = (
    Preset(
        name="kl-cov",
        title="KL-Cov",
        summary="The same tokens as Clip-Cov, the few with the largest covariance, are held near the policy that "
        "sampled them by a penalty on the log ratio; the ratio is not clipped.",
        when="Several minibatches per step: in the first update on fresh rollouts the penalty has no gradient.",
        formula=KLCov.formula,
        variants="The authors' first code counts the tokens in percent (0.2 and 0.02 in their scripts): set `percent`. "
        "verl's default price is 0.1, the authors' 1.",
        reference=paper(
            "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models", "2505.22617", 2025
        ),
        confidence="code",
        parts=[GROUP, {"type": "importance_ratio"}, {"type": "kl_cov"}, TOKENS],
    ),
)
