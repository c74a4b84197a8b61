"""The weight's gradient summed up where the caller keeps it, over several calls."""

from __future__ import annotations

import random

import pytest
import torch

from trainer.kernels import TokenStats, linear_token_loss

ROWS, VOCABULARY, WIDTH = 7, 37, 5


def loss(stats: TokenStats, rows: torch.Tensor) -> torch.Tensor:
    return (rows + 1) * stats.logprob - 0.3 * stats.entropy


@pytest.mark.parametrize("room", ["reference", "chunked"])
@pytest.mark.parametrize("chunk_bytes", [1, None])
def test_two_calls_add_up_what_autograd_would_have_given(room, chunk_bytes):
    dice = torch.Generator().manual_seed(random.randrange(1 << 30))
    weight = torch.randn(VOCABULARY, WIDTH, generator=dice, requires_grad=True)
    bias = torch.randn(VOCABULARY, generator=dice, requires_grad=True)
    summed = torch.zeros(VOCABULARY, WIDTH)
    found, wanted = [], []
    for _ in range(2):
        states, target = torch.randn(ROWS, WIDTH, generator=dice), torch.randint(VOCABULARY, (ROWS,), generator=dice)
        for kept, into in ((wanted, None), (found, summed)):
            hidden = states.clone().requires_grad_()
            total, _ = linear_token_loss(
                hidden, weight, target, loss, bias=bias, room=room, chunk_bytes=chunk_bytes, weight_grad=into
            )
            gradients = torch.autograd.grad(total, [hidden, bias, weight], allow_unused=True)
            assert (gradients[2] is None) == (into is not None)
            kept.append(gradients)
    torch.testing.assert_close(summed, wanted[0][2] + wanted[1][2])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours[0], theirs[0])
        torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize(
    "wrong", [torch.zeros(VOCABULARY, WIDTH + 1), torch.zeros(VOCABULARY, WIDTH, dtype=torch.float64)], ids=str
)
def test_memory_that_does_not_fit_is_refused(wrong):
    hidden, weight = torch.zeros(ROWS, WIDTH, requires_grad=True), torch.zeros(VOCABULARY, WIDTH)
    with pytest.raises(ValueError, match="weight_grad is"):
        linear_token_loss(hidden, weight, torch.zeros(ROWS, dtype=torch.long), loss, weight_grad=wrong)
