"""The first-order entropy change against what a step on a tabular softmax policy really does."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
import torch

from trainer.batch import TokenBatch
from trainer.errors import ConfigError
from trainer.objectives.entropy_change.first_order import baseline, change, discriminator


def tabular(logits: torch.Tensor, actions: torch.Tensor) -> TokenBatch:
    """One completion whose tokens are drawn from rows of logits, [N, V]."""
    logp = logits.log_softmax(-1)
    p, count = logp.exp(), logits.shape[0]
    return TokenBatch(
        logprob=logp.gather(1, actions[:, None]).squeeze(1),
        sequence=torch.zeros(count, dtype=torch.long),
        position=torch.arange(count),
        group=torch.zeros(1, dtype=torch.long),
        reward=torch.zeros(1, dtype=torch.float64),
        length=torch.tensor([count]),
        entropy=-(p * logp).sum(-1),
        sum_p2=p.square().sum(-1),
        sum_p2_logp=(p.square() * logp).sum(-1),
    )


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(40, 9, generator=dice, dtype=torch.float64) * 2, torch.randint(0, 9, (40,), generator=dice)


def test_predicts_what_a_small_step_does_to_entropy(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, actions = drawn
    advantage, eta = torch.linspace(-2, 2, 40, dtype=torch.float64), 1e-6
    batch = tabular(logits, actions)
    moves = torch.nn.functional.one_hot(actions, 9) - logits.softmax(-1)  # gradient of log pi(a) by the logits
    after = tabular(logits + eta * advantage[:, None] * moves, actions)
    measured = (after.need("entropy") - batch.need("entropy")) / eta
    assert torch.allclose(change(batch, advantage), measured, atol=1e-4)


def test_the_baseline_is_the_policys_mean_of_the_discriminator(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, _ = drawn
    each = [discriminator(tabular(logits, torch.full((40,), token))) for token in range(9)]
    mean = (torch.stack(each, dim=1) * logits.softmax(-1)).sum(1)
    assert torch.allclose(baseline(tabular(logits, torch.zeros(40, dtype=torch.long))), mean, atol=1e-12)


@pytest.mark.parametrize("name", ["entropy", "sum_p2", "sum_p2_logp"])
def test_a_missing_statistic_is_named(drawn: tuple[torch.Tensor, torch.Tensor], name: str) -> None:
    batch = replace(tabular(*drawn), **{name: None})
    with pytest.raises(ConfigError, match=name):
        change(batch, torch.ones(40, dtype=torch.float64))
