"""The picture of an objective is the objective itself, run on true distributions."""

from __future__ import annotations

import json
import random

import pytest
import torch

from trainer.objectives import PRESETS, ObjectiveConfig
from trainer.objectives.picture import Scene, natural_scene, picture, statistics_of
from trainer.objectives.softmax_grid import ENTROPY, PROBABILITY, before, by_entropy, by_ratio, entropy_of, geometric


def config(preset: str, *parts: dict) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"preset": preset, "parts": list(parts)})


def column(shown: dict, view: str, side: str) -> torch.Tensor:
    return torch.tensor(shown["views"][view][side], dtype=torch.float64)


def test_every_field_is_a_distribution_with_its_probability_and_entropy() -> None:
    ground = by_entropy()
    assert torch.allclose(ground.logp.exp().sum(1), torch.ones(len(ground.logp), dtype=torch.float64), atol=1e-12)
    wanted = torch.tensor(ENTROPY.values, dtype=torch.float64)[ground.row]
    assert (entropy_of(ground.logp) - wanted).abs().max() < 1e-9
    assert (
        ground.logp[:, 0].exp() - torch.tensor(PROBABILITY.values, dtype=torch.float64)[ground.column]
    ).abs().max() < 1e-12
    assert len(ground.logp) > 150


def test_what_is_missing_from_the_grid_has_no_distribution() -> None:
    there = {(int(c), int(r)) for c, r in zip(by_entropy().column, by_entropy().row, strict=True)}
    likely = len(PROBABILITY.values) - 1
    assert (likely, len(ENTROPY.values) - 1) not in there  # 0.99 leaves no room for 2.8 nats
    assert (likely // 2, 0) not in there  # a coin toss has 0.69 nats at least


@pytest.mark.parametrize("ground", [by_entropy(0.4), by_entropy(-0.4), by_ratio()])
def test_the_policy_that_drew_is_the_asked_ratio_away(ground) -> None:
    drawn = before(ground)
    assert torch.allclose(ground.logp[:, 0] - drawn[:, 0], ground.log_ratio)
    assert torch.allclose(drawn.exp().sum(1), torch.ones_like(drawn[:, 0]))


def test_a_likely_token_cannot_have_been_much_likelier() -> None:
    assert len(by_entropy(-1.0).logp) < len(by_entropy(1.0).logp) == len(by_entropy().logp)
    ratio = by_ratio()
    assert int(ratio.column[ratio.row == int(ratio.row.max())].min()) > 0


def test_a_tail_has_the_entropy_asked_for() -> None:
    wanted = torch.rand(16, dtype=torch.float64) * 6.9  # an even rest has log 1023 = 6.93
    assert (entropy_of(geometric(wanted)) - wanted).abs().max() < 1e-9


def test_grpo_on_policy_weighs_every_token_by_its_advantage() -> None:
    shown = picture(config("grpo"), Scene())
    assert shown["advantage"]["right"] == pytest.approx(-shown["advantage"]["wrong"])
    assert torch.allclose(
        column(shown, "weight", "right"), torch.tensor(shown["advantage"]["right"]).double(), rtol=1e-4
    )
    assert "entropy_weight" not in shown["views"]


def test_entropy_change_is_the_exact_first_order_formula() -> None:
    shown = picture(config("grpo"), Scene(right=0.25))
    known = statistics_of(by_entropy().logp)
    own = known["logprob"].exp() * (known["logprob"] + known["entropy"])
    policy = known["entropy"] * known["sum_p2"] + known["sum_p2_logp"]
    for side in ("right", "wrong"):
        expected = -shown["advantage"][side] * (own - policy)
        assert torch.allclose(column(shown, "entropy_change", side), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("preset", "part"), [("entropy-bonus", {"type": "entropy_bonus", "coefficient": 0.7})])
def test_entropy_change_is_what_a_small_step_does(preset: str, part: dict) -> None:
    shown = picture(config(preset, part), Scene())
    rate, logits = 1e-6, by_entropy().logp
    grown = logits.detach().clone().requires_grad_()
    logp = torch.log_softmax(grown, -1)
    gain = column(shown, "weight", "right") * logp[:, 0] + column(shown, "entropy_weight", "right") * entropy_of(logp)
    (slope,) = torch.autograd.grad(gain.sum(), grown)
    after = entropy_of(torch.log_softmax(logits + rate * slope, -1))
    measured = (after - entropy_of(logits)) / rate
    assert torch.allclose(column(shown, "entropy_change", "right"), measured, rtol=1e-3, atol=1e-5)


def test_the_clip_stops_tokens_that_have_moved_far_enough() -> None:
    shown = picture(config("grpo"), Scene(log_ratio=0.3))
    assert not column(shown, "weight", "right").any()
    assert bool((column(shown, "weight", "wrong") < -1).all())
    wider = picture(config("grpo", {"type": "ppo_clip", "clip_high": 0.5}), Scene(log_ratio=0.3))
    assert bool((column(wider, "weight", "right") > 1).all())


def test_across_the_ratio_the_clip_is_an_edge() -> None:
    shown = picture(config("dapo"), Scene(across="ratio"))
    ratio = torch.tensor(shown["across"]["values"])[torch.tensor(shown["fields"])[:, 0]]
    right, wrong = (column(shown, "weight", side) for side in ("right", "wrong"))
    assert bool(((right > 0) == (ratio <= 1.28)).all())
    assert bool(((wrong < 0) == (ratio >= 0.8)).all())


def test_methods_are_pictured_where_they_act() -> None:
    assert natural_scene(config("grpo")).across == "ratio"
    assert natural_scene(config("top-entropy-mask")).across == "probability"
    assert natural_scene(config("gspo")) == Scene(across="ratio", layout="alike")
    assert natural_scene(config("entropy-bonus")).across == "probability"


def test_the_mask_of_high_entropy_shows_in_the_rows() -> None:
    shown = picture(config("top-entropy-mask"), Scene())
    weight, rows = column(shown, "weight", "right"), torch.tensor(shown["fields"])[:, 1]
    kept = rows[weight > 0]
    assert 0 < len(kept) < len(rows)
    assert int(kept.min()) > int(rows[weight == 0].max())


def test_the_share_of_right_answers_moves_the_advantage() -> None:
    easy, hard = (picture(config("grpo"), Scene(right=share))["advantage"] for share in (0.75, 0.25))
    assert hard["right"] > easy["right"] > 0 > hard["wrong"] > easy["wrong"]


def test_what_is_made_up_is_named() -> None:
    assert picture(config("dgpo"), Scene())["stand_ins"] == []  # both policies are at hand
    assert picture(config("dsdr"), Scene())["stand_ins"] == ["embedding", "formula_novelty"]


def finite(shown: dict) -> None:
    json.dumps(shown, allow_nan=False)
    for view, sides in shown["views"].items():
        for side, values in sides.items():
            assert None not in values, (view, side)
            assert len(values) == len(shown["fields"])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_finite_picture(preset: str) -> None:
    scene = natural_scene(config(preset)).model_copy(update={"log_ratio": 0.05, "progress": 0.5})
    finite(picture(config(preset), scene))


def test_any_preset_can_be_seen_in_any_scene() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for preset in dice.sample(sorted(PRESETS), 6):
        scene = Scene(
            across=dice.choice(["probability", "ratio"]),
            log_ratio=dice.uniform(-1, 1),
            right=dice.uniform(0.125, 0.875),
            layout=dice.choice(["mixed", "alike"]),
            marked=dice.random() < 0.5,
        )
        print(preset, scene)
        finite(picture(config(preset), scene))
