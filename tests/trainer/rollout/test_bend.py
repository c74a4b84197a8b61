"""Bent distributions: what each modifier and typical sampling make of a token's probabilities."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from tests.trainer.rollout.naive import bent, entropy_of, truncated
from trainer.rollout import SamplerSpec
from trainer.rollout.bend import Bends, vocabulary_kept
from trainer.rollout.modifiers import AdaptiveTemperature, ForkTemperature, Modifier, UniformChoice, VocabularyDropout
from trainer.rollout.randomness import uniforms
from trainer.rollout.sampling import Samplers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Draw fresh rows each time; a failing seed can be put back here."""
    chosen = random.SystemRandom().getrandbits(32)
    print(f"seed {chosen}")
    random.seed(chosen)
    torch.manual_seed(chosen)


def number(low: float, high: float) -> float:
    """Return a number that float32 holds, so that nothing but the maths differs."""
    return float(np.float32(random.uniform(low, high)))


def modifier() -> Modifier:
    kind = random.randrange(4)
    if kind == 0:
        up, down = number(0, 2), number(-2, 2)
        return AdaptiveTemperature(number(-3, 1), number(0.1, 2), up, down, number(0, 0.9))
    if kind == 1:
        return ForkTemperature(number(0.2, 3), number(0.5, 2), number(0.5, 2))
    if kind == 2:
        return UniformChoice(random.randrange(1, 9), number(0, 0.2), random.randrange(4))
    return VocabularyDropout(number(0.05, 0.95), random.getrandbits(64), tuple(random.sample(range(60), 2)))


def spec() -> SamplerSpec:
    modifiers = tuple(modifier() for _ in range(random.choice([0, 1, 1, 2])))
    return SamplerSpec(modifiers=modifiers, typical_p=random.choice([1.0, number(0.1, 0.99)]))


def rows(count: int, vocabulary: int = 50) -> torch.Tensor:
    return torch.randn(count, vocabulary, dtype=torch.float64) * torch.rand(count, 1, dtype=torch.float64) * 6


@pytest.mark.parametrize("vocabulary", [3, 50, 700])
def test_any_mixture_of_rows_is_bent_as_float64_does_one_at_a_time(vocabulary):
    specs, logits = [spec() for _ in range(40)], rows(40, vocabulary).log_softmax(-1)
    position = torch.randint(0, 6, (40,))
    found = Bends(specs, CPU).apply(logits, position).log_softmax(-1)
    for row, (one, place) in enumerate(zip(specs, position.tolist(), strict=True)):
        assert torch.allclose(found[row], bent(logits[row], one, place), rtol=1e-9, atol=1e-9), one


def test_rows_without_modifiers_come_back_bit_for_bit_and_the_input_is_left_alone():
    specs, logits = [random.choice([SamplerSpec(), spec()]) for _ in range(30)], rows(30).float()
    before = logits.clone()
    found = Bends([*specs, SamplerSpec()], CPU).apply(torch.cat([logits, logits[:1]]), torch.zeros(31).long())
    for row, one in enumerate(specs):
        if one.plain:
            assert torch.equal(found[row], before[row])
    assert torch.equal(logits, before)
    assert not Bends([SamplerSpec(top_p=0.5), SamplerSpec(temperature=2)], CPU)


def test_some_of_the_rows_in_another_order_are_bent_alike():
    specs, logits, position = [spec() for _ in range(12)], rows(12), torch.randint(0, 6, (12,))
    order = torch.randperm(12)[:7]
    whole, bends = Bends(specs, CPU).apply(logits, position), Bends(specs, CPU)
    assert torch.equal(bends.of(order).apply(logits[order], position[order]), whole[order])
    assert torch.equal(bends.of(slice(3, 9)).apply(logits[3:9], position[3:9]), whole[3:9])


# -- worked by hand ---------------------------------------------------------------------------------------------------

FOUR = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)  # H = 1.1421 nats


def probabilities(one: SamplerSpec, position: int = 0, of: torch.Tensor = FOUR) -> list[float]:
    return Bends([one], CPU).apply(of.log(), torch.tensor([position]))[0].softmax(-1).tolist()


def powered(exponent: float) -> list[float]:
    values = [p**exponent for p in FOUR[0].tolist()]
    return [value / sum(values) for value in values]


@pytest.mark.parametrize(
    ("pivot", "down", "temperature"),
    [
        (0.0, 1.0, 1 + 0.5 * 0.13289),  # ln 1.1421 = 0.13289 above the pivot
        (-5.0, 1.0, 1.5),  # far above: cut off at 1
        (0.5, 0.4, 1 - 0.5 * 0.4 * 0.36711),  # intended: below the pivot cooler
        (0.5, -0.4, 1 + 0.5 * 0.4 * 0.36711),  # as released: hotter there too
    ],
)
def test_the_adaptive_temperature_follows_log_entropy(pivot, down, temperature):
    one = SamplerSpec(modifiers=(AdaptiveTemperature(pivot, 1.0, 1.0, down, 0.5),))
    assert probabilities(one) == pytest.approx(powered(1 / temperature), abs=1e-5)


def test_a_fork_gets_its_own_temperature():
    hot, cold = (
        SamplerSpec(modifiers=(ForkTemperature(1.1, 2.0, 0.5),)),
        SamplerSpec(modifiers=(ForkTemperature(1.2, 2.0, 0.5),)),
    )
    assert probabilities(hot) == pytest.approx(powered(0.5))
    assert probabilities(cold) == pytest.approx(powered(2))


@pytest.mark.parametrize(
    ("k", "floor", "warm", "expected"),
    [
        (5, 0.1, 0, [1 / 3, 1 / 3, 1 / 3, 0]),
        (2, 0.1, 0, [0.5, 0.5, 0, 0]),
        (3, 0.6, 0, [1 / 3, 1 / 3, 1 / 3, 0]),  # nobody is that likely: all k
        (3, 0.4, 0, [1, 0, 0, 0]),
        (3, 0.4, 3, [0.5, 0.3, 0.15, 0.05]),  # token 2 is still warm-up
    ],
)
def test_uniform_choice_takes_the_plausible_and_waits(k, floor, warm, expected):
    assert probabilities(SamplerSpec(modifiers=(UniformChoice(k, floor, warm),)), 2) == pytest.approx(expected)


def test_typical_sampling_may_leave_out_the_likeliest():
    """-ln p = 0.69, 1.20, 1.90, 3.00 around H = 1.14: the order is b, a, c, d."""
    assert probabilities(SamplerSpec(typical_p=0.3)) == pytest.approx([0, 1, 0, 0])
    assert probabilities(SamplerSpec(typical_p=0.31)) == pytest.approx([0.625, 0.375, 0, 0])
    assert probabilities(SamplerSpec(typical_p=0.96)) == pytest.approx([0.5, 0.3, 0.15, 0.05])


def test_typical_sampling_is_transformers_own():
    from transformers import TypicalLogitsWarper

    logits, mass = rows(30), random.uniform(0.2, 0.95)
    theirs = TypicalLogitsWarper(mass=mass)(None, logits.clone())
    ours = Bends([SamplerSpec(typical_p=mass)], CPU).apply(logits, torch.zeros(30).long())
    assert torch.equal(ours, theirs)


def test_dropout_keeps_its_share_and_whoever_is_spared_and_depends_on_the_seed_alone():
    keep, spared = random.uniform(0.2, 0.9), (7, 11, 999_999)
    kept = [vocabulary_kept(VocabularyDropout(keep, seed, spared), 20_000) for seed in (1, 2)]
    for mask in kept:
        assert mask[7]
        assert mask[11]
        assert abs(mask.mean() - keep) < 5 * math.sqrt(keep * (1 - keep) / 20_000)
    assert abs((kept[0] == kept[1]).mean() - keep**2 - (1 - keep) ** 2) < 0.03
    assert (vocabulary_kept(VocabularyDropout(keep, 1, spared), 100) == kept[0][:100]).all()


def test_a_row_of_which_nothing_would_be_left_stays_whole():
    one = SamplerSpec(modifiers=(VocabularyDropout(1e-12, 1, ()),))
    assert probabilities(one) == pytest.approx(FOUR[0].tolist())


def test_a_token_that_cannot_come_still_cannot():
    of = torch.tensor([[0.6, 0.0, 0.4, 0.0]], dtype=torch.float64)
    for one in (ForkTemperature(0.1, 9.0, 1.0), UniformChoice(4, 0.3, 0), AdaptiveTemperature(-1, 1, 1, 1, 0.9)):
        found = probabilities(SamplerSpec(modifiers=(one,)), 0, of)
        assert (found[1], found[3]) == (0, 0)
        assert found[0] > 0 < found[2]


# -- entropy and draws ------------------------------------------------------------------------------------------------


def entropies(one: Modifier, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    after = Bends([SamplerSpec(modifiers=(one,))], CPU).apply(logits, torch.zeros(len(logits)).long()).log_softmax(-1)
    before = logits.log_softmax(-1)
    return tuple(torch.tensor([entropy_of(row.tolist()) for row in found]) for found in (before, after))  # type: ignore


def test_intended_hapo_spreads_entropies_and_as_released_raises_all_of_them():
    logits = rows(60)
    pivot = math.log(0.8)
    intended = entropies(AdaptiveTemperature(pivot, 1.0, 0.5, 0.5, 0.3), logits)
    released = entropies(AdaptiveTemperature(pivot, 1.0, 0.5, -0.5, 0.3), logits)
    above = intended[0] > 0.8
    assert above.any()
    assert not above.all()
    assert (intended[1][above] >= intended[0][above]).all()
    assert (intended[1][~above] <= intended[0][~above]).all()
    assert (released[1] >= released[0]).all()


@pytest.mark.parametrize("vocabulary", [9, 700])
def test_draws_follow_the_declared_distribution(vocabulary):
    """Chi-square over the tokens that should come ten times or more; the reported log-prob is of that distribution."""
    count, logits = 4000, rows(1, vocabulary).float()
    bend = modifier()
    top_p = 1.0 if isinstance(bend, UniformChoice) else random.choice([1.0, 0.8])  # which keeps all equals, or some
    one = SamplerSpec(modifiers=(bend,), typical_p=random.choice([1.0, 0.9]), top_p=top_p)
    seeds = np.array([random.getrandbits(64) for _ in range(count)], dtype=np.uint64)
    numbers = torch.from_numpy(uniforms(seeds, np.full(count, 5)))
    position = torch.full((count,), 5)
    token, logprob, _, behaviour = Samplers([one], CPU).sample(logits.repeat(count, 1), numbers, position)
    raw = logits[0].double().log_softmax(-1)
    expected = torch.tensor(truncated(bent(raw, one, 5), one), dtype=torch.float64)
    expected /= expected.sum()
    drawn = torch.bincount(token, minlength=vocabulary).double()
    assert (drawn[expected == 0] == 0).all(), one
    assert torch.allclose(behaviour.double(), expected[token].log(), atol=1e-4), one
    assert torch.allclose(logprob.double(), raw[token], atol=1e-4)
    often = expected * count >= 10
    cells = (
        torch.cat([drawn[often], drawn[~often].sum()[None]]),
        torch.cat([expected[often], expected[~often].sum()[None]]),
    )
    filled = cells[1] > 0
    observed, wanted = cells[0][filled], cells[1][filled] * count
    degrees = len(wanted) - 1
    chi = float(((observed - wanted) ** 2 / wanted.clamp(min=1)).sum())
    assert chi < degrees + 6 * math.sqrt(2 * degrees) + 20, (one, chi, degrees)


def test_a_bent_token_of_no_measurable_mass_still_has_a_log_prob():
    one = SamplerSpec(modifiers=(ForkTemperature(0.0, 50.0, 50.0),))
    logits = torch.tensor([[0.0, -120.0]])
    token, logprob, _, behaviour = Samplers([one], CPU).sample(
        logits, torch.tensor([0.999], dtype=torch.float64), torch.tensor([0])
    )
    assert (token.item(), logprob.item()) == (1, pytest.approx(-120))
    assert behaviour.item() == pytest.approx(-2.4 - math.log1p(math.exp(-2.4)), abs=1e-5)


def test_greedy_rows_take_the_likeliest_whatever_bends_the_others():
    specs = [SamplerSpec(temperature=0, modifiers=(UniformChoice(3, 0.0, 0),)), SamplerSpec(typical_p=0.29)]
    logits = FOUR.log().float().repeat(2, 1)
    token, _, _, behaviour = Samplers(specs, CPU).sample(
        logits, torch.rand(2, dtype=torch.float64), torch.zeros(2).long()
    )
    assert token.tolist() == [0, 1]
    assert behaviour.tolist() == pytest.approx([0, 0], abs=1e-6)
