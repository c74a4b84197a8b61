"""The policy's passes against plain autograd."""

from __future__ import annotations

import random

import torch

from tests.trainer.rollout.naive import requests, tiny
from trainer.policy import Trajectory


def test_gradients_equal_those_of_one_plain_loss():
    """Pass 2 carries given gradients of log-prob and entropy through the model exactly as autograd would."""
    policy = tiny()
    rows = [
        Trajectory(r.prompt_ids, tuple(random.choices(range(3, 18), k=random.randrange(1, 7))))
        for r in requests(policy, 3)
    ]
    count = sum(len(row.completion) for row in rows)
    g_logprob, g_entropy = torch.randn(count), torch.randn(count)
    for start in range(0, count, 4):  # some completions without any gradient
        g_logprob[start : start + 2] = g_entropy[start : start + 2] = 0

    def clear():
        policy.lm.zero_grad(set_to_none=True)

    clear()
    policy.backward(rows, 1.3, g_logprob, g_entropy, clear)
    ours = {name: parameter.grad.clone() for name, parameter in policy.lm.named_parameters()}
    clear()
    loss, at = torch.zeros(()), 0
    for row in rows:
        logp = (policy.lm(torch.tensor([row.prompt + row.completion])).logits[0] / 1.3).log_softmax(-1)
        logp = logp[len(row.prompt) - 1 : -1]
        span = slice(at, at + len(row.completion))
        loss = loss + (g_logprob[span] * logp.gather(1, torch.tensor(row.completion)[:, None]).squeeze(1)).sum()
        loss = loss - (g_entropy[span] * (logp.exp() * logp).sum(-1)).sum()
        at += len(row.completion)
    loss.backward()
    for name, parameter in policy.lm.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-4, rtol=1e-4), name
    clear()
