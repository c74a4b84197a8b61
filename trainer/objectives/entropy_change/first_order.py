"""The exact first-order entropy change of one policy-gradient step, which several methods and the thermostat share.

For a softmax over free logits, a step of size eta on A log pi(a) changes the entropy of that position by
-eta * A * (S - N) + O(eta^2), with S = p (l + H) of the sampled token and N = E_{v ~ pi}[S_v] = H s2 + s2l, where
s2 = sum p^2 and s2l = sum p^2 log p (derived in 2602.03392). Positions of a network share weights, so over a network
this is the part of the change that each position causes at itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.errors import ConfigError
from trainer.objectives.base import Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

CHANGE_NEEDS: frozenset[Statistic] = frozenset({"entropy", "sum_p2", "sum_p2_logp"})


def discriminator(batch: TokenBatch) -> Tensor:
    """Return S = p (l + H) in nats, [N], detached: minus the derivative of H by the sampled token's logit.

    Raises ConfigError where the batch lacks entropy.
    """
    logprob = batch.logprob.detach()
    return logprob.exp() * (logprob + _present(batch, "entropy"))


def baseline(batch: TokenBatch) -> Tensor:
    """Return N = H s2 + s2l in nats, [N], detached: the mean of S over the policy's own tokens.

    Raises ConfigError where the batch lacks entropy, sum_p2 or sum_p2_logp.
    """
    return _present(batch, "entropy") * _present(batch, "sum_p2") + _present(batch, "sum_p2_logp")


def change(batch: TokenBatch, coefficient: Tensor) -> Tensor:
    """Return -coefficient * (S - N) in nats per unit of step size on the logits, [N], detached.

    `coefficient` is what multiplies the token's log-prob gradient, [N]: the advantage under plain on-policy GRPO,
    `Outcome.weight` in general. Raises ConfigError where the batch lacks entropy, sum_p2 or sum_p2_logp.
    """
    return -coefficient.detach() * (discriminator(batch) - baseline(batch))


def at_start(batch: TokenBatch) -> TokenBatch:
    """Return the batch with the step-start policy's log-prob and entropy in the place of the current ones.

    For what is decided once per rollout batch, before the policy moves: the moments are that policy's then.
    """
    logprob = batch.logprob if batch.old_logprob is None else batch.old_logprob
    return batch.replace(logprob=logprob, entropy=batch.entropy if batch.old_entropy is None else batch.old_entropy)


def _present(batch: TokenBatch, name: str) -> Tensor:
    value: Tensor | None = getattr(batch, name)
    if value is None:
        raise ConfigError(f"{name} is missing from the batch, and the entropy change reads it; add it", name)
    return value.detach()
