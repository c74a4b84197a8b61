"""KL to a reference policy, in the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Statistic, Step, demand
from trainer.objectives.preset import Preset
from trainer.objectives.ratio import LOG_RATIO_LIMIT
from trainer.objectives.stages import TokenPenalty
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

Estimator = Literal["k1", "abs", "k2", "k3"]
K3_LIMIT = 10.0  # nats; the bound of the reference implementations


def kl_estimate(logprob: Tensor, other: Tensor, estimator: Estimator) -> Tensor:
    """Return the estimate of KL(policy || other) at the sampled tokens, [N], nats, differentiable."""
    difference = logprob - other
    if estimator == "k1":
        return difference
    if estimator == "abs":
        return difference.abs()
    if estimator == "k2":
        return difference.square() / 2
    back = (-difference).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (back.exp() - back - 1).clamp(-K3_LIMIT, K3_LIMIT)


class KLPenalty(TokenPenalty):
    """KL penalty to the reference model.

    Adds coefficient times an estimate of the KL divergence from the model the run started from: k1 = d, abs = |d|,
    k2 = d^2 / 2, k3 = exp(-d) + d - 1, with d = log-prob minus reference log-prob. Loads the reference model.
    """

    title: ClassVar[str] = "KL penalty"
    paper: ClassVar[str] = "2402.03300"
    formula: ClassVar[str] = (
        r"x_t \mathrel{+}= \beta\,k(d_t),\quad d_t = \log\frac{\pi(o_t)}{\pi_{\text{ref}}(o_t)},\quad "
        r"k_3(d) = e^{-d} + d - 1"
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({"logprob", "ref_logprob"})
    type: Literal["kl_penalty"] = "kl_penalty"
    estimator: Estimator = setting("k3", help="Estimate of the divergence from sampled tokens.")
    coefficient: float = setting(1e-3, help="Price of a nat of divergence.", ge=0, le=100, knob="kl_coefficient")

    def penalty(self, batch: TokenBatch, step: Step) -> Tensor:
        assert batch.mask is not None
        reference = demand(batch.ref_logprob, "ref_logprob", self)
        values = kl_estimate(batch.logprob, reference, self.estimator)
        counted = values.detach()[batch.mask > 0]
        step.metrics["objective/reference_kl"] = float(counted.mean()) if counted.numel() else 0.0
        return step.knobs["kl_coefficient"] * values


PARTS = (KLPenalty,)
PRESETS: tuple[Preset, ...] = ()
