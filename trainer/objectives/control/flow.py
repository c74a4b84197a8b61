"""Flows: the first-order entropy change that a step's gradient predicts, split into the policy's and an actuator's.

A step of size 1 on free logits changes the mean entropy by the sum over tokens of

    dL/dlogprob * (S - N)  -  dL/dentropy * V,        V = sum_a p_a^2 (log p_a + H)^2 = |dH/dlogits|^2

(S and N as in entropy_change/first_order.py). V is the mean of p (log p + H)^2 over the policy's own choices, so the
sampled tokens estimate it without bias; in the same way the mean of (log p + H)^2 is dH / d log temperature. The
trainer samples and scores at one temperature, so the sampled tokens are the policy's choices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.lazy import torch
from trainer.objectives.control.actuators import Kind
from trainer.objectives.entropy_change.first_order import baseline, discriminator
from trainer.objectives.reductions import counts_of, step_mean

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch
    from trainer.objectives.base import Outcome


def flows(batch: TokenBatch, outcome: Outcome, kind: Kind, value: float) -> dict[str, float]:
    """Return `policy`, what the step would do with the actuator at rest, and `authority`, its change per unit of value.

    Both in nats per unit of step size (`authority` of the temperature: nats per unit of its log); `value` is what the
    actuator stood at in this step. The batch must hold entropy, sum_p2 and sum_p2_logp.
    """
    counts = counts_of(batch)
    surprise = (batch.logprob + batch.need("entropy")).detach().square()  # (log p + H)^2, [N]
    steepness = batch.logprob.detach().exp() * surprise  # an unbiased estimate of V, [N]
    policy = outcome.grad_logprob * (discriminator(batch) - baseline(batch))  # [N]
    total = policy.sum()
    if outcome.grad_entropy is not None:
        total = total - (outcome.grad_entropy * steepness).sum()
    if kind == "temperature":
        return {"policy": float(total), "authority": float(step_mean(surprise, counts))}
    authority = step_mean(steepness, counts) if kind == "bonus" else _leverage(policy, outcome, kind, value)
    return {"policy": float(total - value * authority), "authority": float(authority)}


def _leverage(policy: Tensor, outcome: Outcome, kind: Kind, value: float) -> Tensor:
    """Return the derivative of the flow by the value of an actuator that weighs tokens with 1 + value * side, []."""
    side = policy.sign() if kind == "polarity" else -outcome.advantage.sign()  # [N]
    weight = 1 + value * side
    return torch.where(weight > 0, policy * side / weight, torch.zeros_like(policy)).sum()


def variance_of_mean(batch: TokenBatch) -> float:
    """Return the variance of the batch's mean entropy over draws of its prompts, nats^2: completions of one are alike.

    The ratio estimator over prompts as clusters; 0 for fewer than two prompts.
    """
    counts, entropy = counts_of(batch), batch.need("entropy").detach()
    excess = torch.where(counts, entropy - step_mean(entropy, counts), torch.zeros_like(entropy))
    kinds, prompt = torch.unique(batch.group, return_inverse=True)
    prompts = int(kinds.shape[0])
    if prompts < 2:
        return 0.0
    sums = excess.new_zeros(prompts).index_add(0, prompt[batch.sequence], excess)
    return float(sums.square().sum() * prompts / (prompts - 1) / counts.sum().clamp(min=1).square())
