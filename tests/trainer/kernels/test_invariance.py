"""`invariant`: a row's numbers are bitwise the same wherever it stands and whatever stands beside it."""

from __future__ import annotations

import random

import pytest
import torch

from tests.trainer.kernels.problems import seed_all
from trainer.kernels import linear_logprob_entropy

FIELDS = ("logprob", "entropy", "lse", "sum_p2", "sum_p2_logp", "logprob2", "entropy2", "kept_mass", "argmax")


@pytest.mark.parametrize(("v", "h"), [(17, 5), (1000, 37), (4099, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_do_not_feel_their_neighbours(v: int, h: int, dtype: torch.dtype) -> None:
    seed_all()
    n = 300
    hidden, weight, target = torch.randn(n, h).to(dtype), torch.randn(v, h).to(dtype), torch.randint(0, v, (n,))
    heat = torch.rand(n) + 0.5

    def of(rows: torch.Tensor):
        return linear_logprob_entropy(
            hidden[rows], weight, target[rows], temperature=heat[rows], invariant=True, moments=True,
            second_temperature=0.8, min_p=0.02,
        )  # fmt: skip

    whole = of(torch.arange(n))
    for size in (1, 2, random.randrange(3, 128), 128, random.randrange(129, n)):
        rows = torch.randperm(n)[:size]
        part = of(rows)
        for name in FIELDS:
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), (name, size)


def test_gradients_come_with_it() -> None:
    seed_all()
    hidden, weight = torch.randn(150, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    target = torch.randint(0, 40, (150,))
    found = []
    for options in ({"invariant": True}, {"invariant": True, "keep_bytes": 2**20}, {"room": "reference"}):
        stats = linear_logprob_entropy(hidden, weight, target, **options)
        found.append(torch.autograd.grad(stats.entropy.sum(), [hidden, weight]))
    for pair in found[:2]:
        for a, b in zip(pair, found[2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
