"""Drawing tokens: probabilities, random numbers, truncation and the statistics that come with a token."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.trainer.rollout.naive import pick, truncated
from trainer.rollout import SamplerSpec
from trainer.rollout.sampling import LIKELIEST, Samplers, draw, seed_of, uniforms


def sample(specs, logits, numbers):
    """Return token, log-prob and entropy of first tokens."""
    start = torch.zeros(len(logits), dtype=torch.long)
    return Samplers(specs, torch.device("cpu")).sample(logits, numbers, start)[:3]


def test_tokens_are_drawn_with_their_probabilities():
    probability = torch.rand(7).double() * (torch.rand(7) > 0.3)
    probability[3] = 0.5
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = draw(probability.expand(len(grid), -1), grid)
    share = torch.bincount(drawn, minlength=7) / len(grid)
    assert torch.allclose(share.double(), probability / probability.sum(), atol=2e-5)
    assert (share[probability == 0] == 0).all()


def test_a_number_at_the_very_end_never_draws_an_impossible_token():
    probability = torch.tensor([[0.3, 0.7, 0.0]], dtype=torch.float64)
    assert draw(probability, torch.tensor([1 - 2**-53], dtype=torch.float64)).item() == 1
    assert draw(probability, torch.tensor([1.0], dtype=torch.float64)).item() == 1


def test_random_numbers_are_uniform_and_unrelated():
    seeds = np.array(
        [seed_of(0, step, group, sample) for step in range(8) for group in range(16) for sample in range(16)]
    )
    numbers = np.stack([uniforms(seeds.astype(np.uint64), np.full(len(seeds), t)) for t in range(16)])  # [T, R]
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts = np.histogram(numbers, bins=64, range=(0, 1))[0]
    expected = numbers.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 130  # chi-square with 63 degrees: 1 in a million
    centred = numbers - 0.5
    neighbours = [(centred[1:] * centred[:-1]).mean(), (centred[:, 1:] * centred[:, :-1]).mean()]
    assert max(map(abs, neighbours)) < 5 / 12 / np.sqrt(numbers.size)


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        (SamplerSpec(top_k=2), {0, 1}),
        (SamplerSpec(top_p=0.49), {0}),
        (SamplerSpec(top_p=0.51), {0, 1}),
        (SamplerSpec(min_p=0.3), {0, 1}),
        (SamplerSpec(top_p=0.999, top_k=3, min_p=0.1), {0, 1, 2}),
        (SamplerSpec(top_p=1e-9), {0}),
    ],
)
def test_truncation_keeps_the_likeliest_and_reports_the_whole_policy(spec, kept):
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    count = 400
    numbers = (torch.arange(count) + 0.5).double() / count
    token, logprob, entropy = sample([spec] * count, logits.repeat(count, 1), numbers)
    assert set(token.tolist()) == kept
    assert torch.allclose(logprob, logits[token])
    assert entropy[0].item() == pytest.approx(-(logits.exp() * logits).sum().item(), abs=1e-6)


@pytest.mark.parametrize("vocabulary", [1, 2, 255, 512, 513, 700, 1024, 5000])
def test_any_vocabulary_draws_what_a_plain_search_draws(vocabulary):
    mass = torch.rand(20, vocabulary) ** 6 * (torch.rand(20, vocabulary) > 0.5)
    mass[:, random.randrange(vocabulary)] = 1e-3
    numbers = torch.rand(20, dtype=torch.float64)
    numbers[0], numbers[1] = 0, 1 - 2**-53
    drawn = draw(mass, numbers)
    for row in range(20):
        cumulative = mass[row].double().cumsum(-1).numpy()
        gap = abs(cumulative / cumulative[-1] - numbers[row].item()).min()
        assert gap < 1e-6 or drawn[row] == pick(mass[row].double().tolist(), numbers[row].item())
        assert mass[row, drawn[row]] > 0


@pytest.mark.parametrize("vocabulary", [18, 3000])
def test_statistics_and_truncation_are_those_of_float64_row_by_row(vocabulary):
    specs = [
        SamplerSpec(
            temperature=random.uniform(0.3, 2),
            top_p=random.choice([1.0, random.uniform(0.3, 0.999)]),
            top_k=random.choice([0, 1, 7, LIKELIEST + 5]),
            min_p=random.choice([0.0, 0.05]),
        )
        for _ in range(24)
    ]
    logits = torch.randn(24, vocabulary) * torch.rand(24, 1) * 5
    numbers = torch.rand(24, dtype=torch.float64)
    token, logprob, entropy = sample(specs, logits.clone(), numbers)
    for row, spec in enumerate(specs):
        logp = (logits[row].double() / spec.temperature).log_softmax(-1)
        kept = truncated(logp, spec)
        cumulative = np.cumsum(kept)
        gap = abs(cumulative / cumulative[-1] - numbers[row].item()).min()
        assert gap < 1e-6 or token[row] == pick(kept, numbers[row].item()), spec
        assert logprob[row].item() == pytest.approx(logp[token[row]].item(), abs=2e-6)
        assert entropy[row].item() == pytest.approx(-(logp.exp() * logp).sum().item(), abs=2e-6)


def test_a_token_that_cannot_come_counts_for_nothing():
    logits = torch.tensor([[1.0, -torch.inf, 0.0, -torch.inf]])
    logp = torch.tensor([1.0, 0.0]).log_softmax(-1)
    for number in (0.0, 0.5, 0.9, 1 - 2**-53):
        drawn = sample([SamplerSpec()], logits.clone(), torch.tensor([number]).double())
        token, logprob, entropy = (value.item() for value in drawn)
        assert token in (0, 2)
        assert logprob == pytest.approx(logp[token // 2].item(), abs=1e-6)
        assert entropy == pytest.approx(-(logp.exp() * logp).sum().item(), abs=1e-6)


def test_greedy_takes_the_first_of_the_highest_logits_however_close():
    logits = torch.tensor([[0.1, 0.1 + 8e-9, 0.05]])
    token = sample([SamplerSpec(temperature=0)], logits, torch.tensor([0.9]).double())[0]
    assert token.item() == 1


def test_half_precision_logits_give_float32_statistics():
    logits = (torch.randn(4, 600) * 4).bfloat16()
    numbers = torch.rand(4, dtype=torch.float64)
    token, logprob, entropy = sample([SamplerSpec()], logits.clone(), numbers)
    logp = logits.double().log_softmax(-1)
    assert torch.allclose(logprob.double(), logp.gather(1, token[:, None]).squeeze(1), atol=2e-6)
    assert torch.allclose(entropy.double(), -(logp.exp() * logp).sum(-1), atol=2e-6)
