"""KL-Cov: hold the tokens whose update would cost the most entropy near the policy that sampled them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Preset, Statistic, Step, TokenPenalty, paper
from trainer.objectives.covariance.estimate import budget, covariance
from trainer.objectives.ratio import log_ratio
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
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob"})
    type: Literal["kl_cov"] = "kl_cov"
    share: float = setting(2e-3, help="Share of all tokens that pay, at least one token.", gt=0, le=1)
    coefficient: float = setting(1.0, help="Price of a nat of log ratio.", ge=0, le=1000, knob="kl_cov_coefficient")

    def penalty(self, batch: TokenBatch, step: Step) -> Tensor:
        values, counts, number = covariance(batch)
        size = min(budget(self.share, number), number)
        chosen = values.masked_fill(~counts, -torch.inf).topk(size).indices
        selected = torch.zeros_like(values).index_fill(0, chosen, 1)
        step.metrics["objective/kl_cov_share"] = size / max(number, 1)
        return step.knobs["kl_cov_coefficient"] * selected * log_ratio(batch).abs()


PARTS = (KLCov,)
PRESETS = (
    Preset(
        name="kl-cov",
        title="KL-Cov",
        summary="The same tokens as Clip-Cov, the few with the largest covariance, are held near the policy that "
        "sampled them by a penalty on the log ratio; the ratio is not clipped.",
        when="Several minibatches per step: in the first update on fresh rollouts the penalty has no gradient.",
        reference=paper(
            "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models", "2505.22617", 2025
        ),
        confidence="code",
        parts=[GROUP, {"type": "importance_ratio"}, {"type": "kl_cov"}, TOKENS],
    ),
)
