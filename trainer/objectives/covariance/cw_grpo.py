"""CW-GRPO: weigh each token by a Gaussian of its covariance of advantage and log-prob."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import counts_of, group_token_mean, step_mean
from trainer.objectives.stages import TokenWeight
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

SMALLEST = 1e-6  # nats; below it a spread of covariances is float32 rounding


class CovarianceWeight(TokenWeight):
    """Covariance weight (CW-GRPO).

    Weighs each token by exp(-c^2 / (2 sigma^2)), c the covariance of its advantage and log-prob and sigma the
    standard deviation of c over the tokens of its prompt; the weights have mean one. Tokens whose covariance is
    extreme, in either direction, count less. Where all covariances are alike every weight is one.
    """

    title: ClassVar[str] = "Covariance weight"
    paper: ClassVar[str] = "2605.11538"
    formula: ClassVar[str] = (
        r"w_t = e^{-c_t^2 / 2\sigma^2},\quad c_t = (\ell_t - \bar\ell)(A_i - \bar A),\quad "
        r"\tilde A_t = \frac{N w_t}{\sum_s w_s} A_i"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"logprob"})
    type: Literal["covariance_weight"] = "covariance_weight"
    scope: Literal["group", "step"] = setting(
        "group", help="Over which tokens means, spread and the mean weight are taken: of the prompt, or of the step."
    )

    def reweigh(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage, logprob = batch.need("advantage"), batch.logprob.detach()
        covariance = (advantage - self._mean(advantage, batch)) * (logprob - self._mean(logprob, batch))
        sigma = (covariance - self._mean(covariance, batch)).square()
        sigma = self._mean(sigma, batch).sqrt()
        spread = sigma > SMALLEST
        scaled = covariance / torch.where(spread, sigma, torch.ones_like(sigma))
        weight = torch.where(spread, (-scaled.square() / 2).exp(), torch.ones_like(sigma))
        mean = self._mean(weight, batch)
        weight = torch.where(mean > 0, weight / mean.clamp(min=torch.finfo(mean.dtype).tiny), 1.0)
        return advantage * weight

    def _mean(self, values: Tensor, batch: TokenBatch) -> Tensor:
        """Return the mean over the tokens of the scope that count, [N]."""
        if self.scope == "group":
            return group_token_mean(values, batch)
        return step_mean(values, counts_of(batch)).expand_as(values)


PARTS = (CovarianceWeight,)
PRESETS = (
    Preset(
        name="cw-grpo",
        title="CW-GRPO",
        summary="A Gaussian of the covariance between advantage and log-prob weighs each token: the few tokens that "
        "would move entropy most, up or down, count least, and the mean weight stays one.",
        when="As Clip-Cov, without thresholds to tune; entropy falls more slowly and never rises by itself.",
        formula=CovarianceWeight.formula,
        reference=paper("Covariance-weighted GRPO", "2605.11538", 2026),
        confidence="secondary",
        assumed="No code was seen. The weights are constants; sigma is the population standard deviation of the "
        "covariances over the prompt's tokens; the log-probs are the current policy's.",
        parts=[GROUP, {"type": "covariance_weight"}, CLIP, TOKENS],
    ),
)
