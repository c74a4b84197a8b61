"""The correction for engines whose log-probs differ from the trainer's: four tokens by hand, and every surrogate."""

from __future__ import annotations

import math

import pytest
import torch

from tests.trainer.objectives.batches import DOUBLE, doubles, hand_batch, objective, random_batch, run
from trainer.batch import TokenBatch
from trainer.objectives import PARTS, Objective, Step
from trainer.objectives.correction import engine_weight
from trainer.objectives.ratio import RatioSurrogate

RATIOS = sorted(name for name, part in PARTS.items() if issubclass(part, RatioSurrogate))
RATIO = doubles(4, 0.25, 1.5, 0.8)  # of the trainer's to the engine's, in two completions: products 1 and 1.2


def four(**fields) -> TokenBatch:
    old = doubles(-1, -2, -1, -3)
    return hand_batch([2, 2], [1, 0], logprob=old, old_logprob=old, engine_logprob=old - RATIO.log(), **fields)


def weights(batch: TokenBatch, **settings) -> list[float]:
    given = {"span": "token", "beyond": "truncate", "floor": 0.0, "cap": 2.0, **settings}
    return engine_weight(batch, batch.need("engine_logprob"), **given)[0].tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [2, 0.25, 1.5, 0.8]),
        ({"beyond": "mask"}, [0, 0.25, 1.5, 0.8]),
        ({"beyond": "mask", "floor": 0.5}, [0, 0, 1.5, 0.8]),
        ({"floor": 0.5, "cap": 3}, [3, 0.5, 1.5, 0.8]),
        ({"span": "sequence"}, [1, 1, 1.2, 1.2]),
        ({"span": "sequence", "cap": 1.1}, [1, 1, 1.1, 1.1]),
        ({"span": "sequence", "cap": 1.1, "beyond": "mask"}, [1, 1, 0, 0]),
        ({"span": "sequence", "cap": 3, "floor": 1.05, "beyond": "mask"}, [0, 0, 1.2, 1.2]),
    ],
    ids=str,
)
def test_four_tokens_by_hand(changes, expected):
    assert weights(four(), **changes) == pytest.approx(expected)


def test_unknown_log_probs_and_auxiliary_completions_are_left_alone():
    batch = four()
    unknown = batch.replace(engine_logprob=torch.tensor([math.nan, -math.inf, -1.0, -3.0], dtype=DOUBLE))
    assert weights(unknown) == [1, 1, 1, 1]
    one = batch.replace(engine_logprob=torch.where(torch.arange(4) == 1, math.nan, batch.need("engine_logprob")))
    assert weights(one) == pytest.approx([2, 1, 1.5, 0.8])
    assert weights(one, span="sequence", cap=5.0) == pytest.approx([4, 4, 1.2, 1.2])  # the known tokens' product
    side = four(auxiliary=torch.tensor([True, False]))
    for span in ("token", "sequence"):
        assert weights(side, span=span, cap=1.1, beyond="mask")[:2] == [1, 1]


def test_a_ratio_beyond_all_numbers_stays_finite():
    batch = four().replace(engine_logprob=doubles(-1e6, -1e6, 0, 0).float())
    for span in ("token", "sequence"):
        assert weights(batch, span=span)[:2] == [2, 2]
        assert weights(batch, span=span, beyond="mask")[:2] == [0, 0]


CHOICES = [
    {"correction": span, "correction_mode": beyond, "correction_cap": 1.3, "correction_floor": 0.4}
    for span in ("token", "sequence")
    for beyond in ("truncate", "mask")
]


def surrogate(name: str, **settings) -> Objective:
    return objective("grpo", {"type": name, **settings})


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_every_surrogate_s_gradient_is_multiplied_by_the_same_weights(name, choice):
    dice = torch.Generator().manual_seed(torch.seed() % 2**31)
    batch = random_batch(dice)
    engine = batch.need("old_logprob") + torch.randn(batch.tokens, generator=dice, dtype=DOUBLE)
    batch = batch.replace(engine_logprob=engine, auxiliary=None)
    knobs = {knob: value.value for knob, value in surrogate(name).knobs().items()}
    given = {"step": 3, "total_steps": 9, "knobs": knobs}
    plain, fixed = run(surrogate(name), batch, **given), run(surrogate(name, **choice), batch, **given)
    weight, outside = engine_weight(
        batch, engine, span=choice["correction"], beyond=choice["correction_mode"], floor=0.4, cap=1.3
    )
    assert torch.allclose(fixed.grad_logprob, plain.grad_logprob * weight, atol=1e-12)
    assert bool(outside.any())
    kept = fixed.metrics["objective/engine_capped"]
    assert 0 < kept <= 1


@pytest.mark.parametrize("name", RATIOS)
def test_the_engine_s_numbers_are_read_only_where_they_are_used(name):
    assert "engine_logprob" not in surrogate(name).needs
    assert "engine_logprob" in surrogate(name, correction="sequence").needs


@pytest.mark.parametrize(("preset", "expected"), [("grpo-tis", [2, 0.25, 1.5, 0.8]), ("grpo-mis", [1, 1, 1.2, 1.2])])
def test_the_named_corrections_are_what_their_names_say(preset, expected):
    batch = four().replace(advantage=torch.ones(4, dtype=DOUBLE), mask=torch.ones(4, dtype=DOUBLE))
    assert objective(preset).apply(batch, Step()).weight.tolist() == pytest.approx(expected)
    wild = batch.replace(engine_logprob=batch.need("engine_logprob") - doubles(0, 2, 0, 0))  # product e^2 > 3
    masked = [0, 0, 1.2, 1.2] if preset == "grpo-mis" else [2, 0.25 * math.exp(2), 1.5, 0.8]
    assert objective(preset).apply(wild, Step()).weight.tolist() == pytest.approx(masked)
