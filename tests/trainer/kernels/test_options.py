"""Every option of the operator: gradients by finite differences, values against the definition in float64."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from tests.trainer.kernels.problems import (
    RARE,
    SHAPES,
    Problem,
    carried,
    chunked_stats,
    reference_stats,
    seed_all,
    slopes,
    task,
    upstream_of,
)
from trainer.kernels import linear_logprob_entropy, linear_token_loss

CASES = [
    *(pytest.param(shape, {}, id=name) for name, shape in SHAPES.items()),
    *(pytest.param({}, wants, id=name) for name, wants in RARE.items()),
    pytest.param(SHAPES["both"], RARE["all"], id="everything"),
]
DRIVERS = pytest.mark.parametrize("slices", [False, True], ids=["by rows", "by slices"])


@pytest.fixture(autouse=True)
def fresh() -> None:
    seed_all()


@DRIVERS
@pytest.mark.parametrize(("shape", "wants"), CASES)
def test_gradcheck_passes_on_the_shipped_function(shape: dict, wants: dict, slices: bool) -> None:
    problem, given = Problem.random(3, 7, 4), task(shape, wants, rows=7, slices=slices)

    def values(hidden, weight, bias):
        problem.hidden, problem.weight, problem.bias = hidden, weight, bias
        return tuple(carried(chunked_stats(problem, given)).values())

    assert torch.autograd.gradcheck(values, problem.leaves)


@DRIVERS
@pytest.mark.parametrize(("shape", "wants"), CASES)
def test_values_and_gradients_equal_the_definition(shape: dict, wants: dict, slices: bool) -> None:
    problem = Problem.random(37, 301)
    given = task(shape, {**wants, "moments": True}, rows=5 * 301, slices=slices)
    upstream = upstream_of(given, 37)
    found, truth = chunked_stats(problem, given), reference_stats(problem, given)
    for field in fields(found):
        a, b = getattr(found, field.name), getattr(truth, field.name)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda m, f=field: f"{f.name}: {m}")
    pairs = zip(slopes(found, problem, upstream), slopes(truth, problem, upstream), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("shape", "wants"), CASES)
def test_the_loss_inside_has_the_slope_of_its_value(shape: dict, wants: dict) -> None:
    """A finite difference along a random direction, in float64."""
    problem = Problem.random(6, 23)
    options = {
        "logit_scale": shape.get("scale", 1.0), "softcap": shape.get("softcap"), "min_p": wants.get("min_p"),
        "top_p": wants.get("top_p"), "nucleus_crossing": wants.get("crossing", False),
        "second_temperature": wants.get("second"), "temperature": 1 / problem.inverse, "chunk_bytes": 8 * 23 * 4,
    }  # fmt: skip
    weights = torch.randn(7, 6, dtype=torch.float64)

    def loss(stats, rows):
        values = carried(stats).values()
        return sum(slope * (value + value.square()) for slope, value in zip(weights[:, rows], values, strict=False))

    def total(*leaves):
        return linear_token_loss(leaves[0], leaves[1], problem.target, loss, bias=leaves[2], **options)[0]

    found = torch.autograd.grad(total(*problem.leaves), problem.leaves)
    ways = [torch.randn_like(leaf) for leaf in problem.leaves]
    step = 1e-5
    ahead, behind = (
        total(*((leaf + sign * step * way).requires_grad_() for leaf, way in zip(problem.leaves, ways, strict=True)))
        for sign in (1, -1)
    )
    expected = (ahead - behind) / (2 * step)
    along = sum((slope * way).sum() for slope, way in zip(found, ways, strict=True))
    torch.testing.assert_close(along, expected.detach(), rtol=1e-6, atol=1e-7)


def test_float32_is_within_a_millionth_of_float64() -> None:
    problem = Problem.random(64, 1100, 16, torch.float32)
    problem.bias = torch.zeros_like(problem.bias).requires_grad_()
    given, exact = task({}, RARE["all"], rows=20000), problem.double()
    found, truth = chunked_stats(problem, given), reference_stats(exact, given)
    for name in ("logprob", "entropy", "entropy2", "nucleus_entropy", "sum_p2", "sum_p2_logp", "kept_mass"):
        a, b = getattr(found, name).detach().double(), getattr(truth, name).detach()
        apart = int(((a - b).abs() / (1 + b.abs()) > 2e-6).sum())
        assert apart <= (name in ("nucleus_entropy", "kept_mass")), (
            name
        )  # a token on the edge of a set may fall either way


@pytest.mark.parametrize("room", ["reference", "chunked"])
def test_tokens_removed_by_min_p_have_a_log_prob_far_below_all_others(room: str) -> None:
    logits = torch.tensor([[5.0, 4.0, -3.0]], dtype=torch.float64).expand(2, 3)
    stats = linear_logprob_entropy(
        logits, torch.eye(3, dtype=torch.float64), torch.tensor([0, 2]), min_p=0.1, room=room
    )
    p = logits[0].softmax(-1)
    torch.testing.assert_close(stats.kept_mass, p[:2].sum().expand(2))
    torch.testing.assert_close(stats.kept_logprob[0], (p[0] / p[:2].sum()).log())
    assert stats.kept_logprob[1] < -9000


@pytest.mark.parametrize("room", ["reference", "chunked"])
@pytest.mark.parametrize(
    ("top_p", "crossing", "kept"), [(0.4, False, 0), (0.4, True, 1), (0.75, False, 1), (0.75, True, 2), (0.95, True, 4)]
)
def test_the_nucleus_by_hand(room: str, top_p: float, crossing: bool, kept: int) -> None:
    p = torch.tensor([0.1, 0.5, 0.1, 0.3], dtype=torch.float64)  # the two tenths tie
    stats = linear_logprob_entropy(
        p.log()[None], torch.eye(4, dtype=torch.float64), torch.tensor([0]), top_p=top_p, nucleus_crossing=crossing,
        room=room,
    )  # fmt: skip
    q = p.sort(descending=True).values[:kept]
    q = q / q.sum() if kept else torch.ones(1, dtype=torch.float64)
    assert float(stats.nucleus_entropy) == pytest.approx(float(-(q * q.log()).sum()), abs=1e-9)


def test_a_nucleus_wider_than_the_tokens_looked_at_first() -> None:
    problem, given = Problem.random(5, 1500), task({"scale": 0.01}, {"top_p": 0.9}, rows=3000)
    a, b = (run(problem, given).nucleus_entropy for run in (chunked_stats, reference_stats))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_entropy_change_along_a_policy_step_is_what_the_moments_say() -> None:
    """dH along A (onehot - p) in the logits is -A [p_y (log p_y + H) - (C + H M2)]."""
    z, target, step = torch.randn(9, 40, dtype=torch.float64), torch.randint(0, 40, (9,)), 1e-6
    eye = torch.eye(40, dtype=torch.float64)
    stats = linear_logprob_entropy(z, eye, target, moments=True)
    way = torch.nn.functional.one_hot(target, 40) - z.softmax(-1)
    ahead, behind = (linear_logprob_entropy(z + sign * step * way, eye, target).entropy for sign in (1, -1))
    p = stats.logprob.exp()
    predicted = -(p * (stats.logprob + stats.entropy) - (stats.sum_p2_logp + stats.entropy * stats.sum_p2))
    torch.testing.assert_close((ahead - behind) / (2 * step), predicted, rtol=1e-6, atol=1e-8)
    assert ((stats.sum_p2 >= 1 / 40) & (stats.sum_p2 <= 1)).all()
