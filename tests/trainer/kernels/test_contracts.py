"""Recompute, keep, and the loss inside: the same numbers, whatever is kept, cut, left out or repeated."""

from __future__ import annotations

from itertools import chain, combinations

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
from trainer.kernels.chunked import figures_of
from trainer.kernels.chunks import Buffer, even, parts
from trainer.kernels.kept import Kept

TIGHT = {torch.float64: 1e-12, torch.float32: 1e-6}
DRIVERS = pytest.mark.parametrize("slices", [False, True], ids=["by rows", "by slices"])


@pytest.fixture(autouse=True)
def fresh() -> None:
    seed_all()


def close(found, expected, tolerance: float) -> None:
    """Compare tensors relative to the largest number in each."""
    for a, b in zip(found, expected, strict=True):
        apart = (a - b).detach().abs().max()
        assert apart <= tolerance * (1 + b.detach().abs().max()), f"{apart:.1e} apart"


@pytest.mark.parametrize("dtype", TIGHT, ids=str)
@pytest.mark.parametrize(("shape", "wants"), [({}, {}), (SHAPES["both"], RARE["all"])], ids=["plain", "everything"])
def test_three_contracts_give_the_same_gradients(shape: dict, wants: dict, dtype: torch.dtype) -> None:
    n, v = 50, 130
    problem = Problem.random(n, v, 8, dtype)
    upstream = upstream_of(task(shape, wants), n, dtype)
    options = {
        "bias": problem.bias, "temperature": 1 / problem.inverse, "logit_scale": shape.get("scale", 1.0),
        "softcap": shape.get("softcap"), "second_temperature": wants.get("second"), "min_p": wants.get("min_p"),
        "top_p": wants.get("top_p"), "chunk_bytes": dtype.itemsize * v * 16,
    }  # fmt: skip

    def weighted(stats, rows):
        return sum(upstream[name][rows] * getattr(stats, name) for name in upstream)

    total, _ = linear_token_loss(problem.hidden, problem.weight, problem.target, weighted, **options)
    inside = torch.autograd.grad(total, problem.leaves)
    for keep in (0, dtype.itemsize * v * 20, 2**30):
        stats = linear_logprob_entropy(problem.hidden, problem.weight, problem.target, keep_bytes=keep, **options)
        losses = weighted(stats, torch.arange(n))
        loss, summed = losses.sum(), float(losses.detach().abs().sum())  # a removed target's log-prob is -1e4
        torch.testing.assert_close(loss, total, rtol=0, atol=TIGHT[dtype] * (n + summed))
        close(torch.autograd.grad(loss, problem.leaves), inside, TIGHT[dtype])


@DRIVERS
def test_chunks_and_budgets_change_nothing(slices: bool) -> None:
    # In float64: in float32 the order of sums alone moves one random problem in a hundred by more than a millionth.
    problem = Problem.random(45, 77, 6)
    upstream = upstream_of(task(), 45)
    expected = None
    for rows in (1, 77, 500, 77 * 16, 77 * 100):
        for keep in (0, 77 * 8, 77 * 8 * 13, 77 * 8 * 45):
            given = task(rows=rows, keep_bytes=keep, slices=slices)
            stats = chunked_stats(problem, given)
            found = (stats.logprob, stats.entropy, *slopes(stats, problem, upstream))
            expected = expected or found
            close(found, expected, 1e-12)


@DRIVERS
@pytest.mark.parametrize("keep", [0, 8 * 60 * 11, 2**20])
def test_rows_without_gradient_add_exactly_nothing(slices: bool, keep: int) -> None:
    problem, given = Problem.random(30, 60), task(rows=60 * 4, slices=slices, keep_bytes=keep)
    live = torch.rand(30) < 0.3
    upstream = {name: slope * live for name, slope in upstream_of(given, 30).items()}
    found = slopes(chunked_stats(problem, given), problem, upstream)
    close(found, slopes(reference_stats(problem, given), problem, upstream), 1e-12)
    assert not found[0][~live].any()
    alone = Problem(
        problem.hidden.detach()[live].requires_grad_(), problem.weight, problem.bias,
        problem.target[live], problem.inverse[live],
    )  # fmt: skip
    kept = {name: slope[live] for name, slope in upstream.items()}
    if live.any():
        close(found[1:], slopes(chunked_stats(alone, given), alone, kept)[1:], 1e-12)


def test_the_loss_inside_leaves_out_rows_without_gradient() -> None:
    problem, slope = Problem.random(40, 33), torch.randn(40, dtype=torch.float64)
    slope[torch.rand(40) < 0.6] = 0
    slope[16:32] = 0  # a whole chunk
    spoilt = problem.hidden.detach().clone()
    spoilt[slope == 0] = torch.nan  # must not reach the weight
    spoilt.requires_grad_()

    def loss(stats, rows):
        return torch.where(slope[rows] != 0, slope[rows] * stats.logprob, 0)

    total, stats = linear_token_loss(spoilt, problem.weight, problem.target, loss, chunk_bytes=8 * 33 * 16)
    found = torch.autograd.grad(total, [spoilt, problem.weight])
    plain = linear_logprob_entropy(problem.hidden, problem.weight, problem.target, room="reference")
    close(found, torch.autograd.grad((plain.logprob * slope).sum(), [problem.hidden, problem.weight]), 1e-12)
    assert stats.logprob[slope == 0].isnan().all()


def test_every_combination_of_missing_upstream_gradients() -> None:
    wants = {"second": 0.7, "min_p": 0.05, "top_p": 0.8}
    problem, given = Problem.random(4, 15), task({}, wants)
    upstream = upstream_of(given, 4)
    truth = carried(reference_stats(problem, given))
    alone = {
        name: torch.autograd.grad((truth[name] * slope).sum(), problem.leaves, retain_graph=True)
        for name, slope in upstream.items()
    }
    names = list(upstream)
    for chosen in chain.from_iterable(combinations(names, size) for size in range(1, len(names) + 1)):
        found = slopes(chunked_stats(problem, given), problem, {name: upstream[name] for name in chosen})
        expected = [sum(parts) for parts in zip(*(alone[name] for name in chosen), strict=True)]
        close(found, expected, 1e-10 if "nucleus_entropy" in chosen else 1e-12)  # its definition has 1e-12 in a log


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
@DRIVERS
def test_only_the_operands_that_want_a_gradient_get_one(wanted: tuple[int, ...], slices: bool) -> None:
    problem, given = Problem.random(6, 13), task(slices=slices)
    upstream = upstream_of(given, 6)
    everything = slopes(chunked_stats(problem, given), problem, upstream)
    for place in {0, 1, 2} - set(wanted):
        problem.leaves[place].requires_grad_(False)
    stats = chunked_stats(problem, given)
    loss = sum((getattr(stats, name) * slope).sum() for name, slope in upstream.items())
    found = torch.autograd.grad(loss, [problem.leaves[place] for place in wanted])
    close(found, [everything[place] for place in wanted], 1e-13)
    leaves = [leaf.detach().requires_grad_(place in wanted) for place, leaf in enumerate(problem.leaves)]
    total, _ = linear_token_loss(
        leaves[0], leaves[1], problem.target, lambda s, r: upstream["logprob"][r] * s.logprob,
        bias=leaves[2], temperature=1 / problem.inverse,
    )  # fmt: skip
    total.backward()
    assert [leaf.grad is not None for leaf in leaves] == [place in wanted for place in range(3)]


def test_two_runs_are_bitwise_equal() -> None:
    problem = Problem.random(90, 400, 24, torch.float32)
    for given in (task(rows=400 * 20), task(rows=400 * 20, slices=True), task(rows=400 * 20, keep_bytes=400 * 4 * 50)):
        upstream = upstream_of(given, 90, torch.float32)
        one, two = (
            (stats.logprob, stats.entropy, *slopes(stats, problem, upstream))
            for stats in (chunked_stats(problem, given), chunked_stats(problem, given))
        )
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_second_backward_recomputes_what_the_first_has_overwritten() -> None:
    problem, given = Problem.random(9, 21), task(keep_bytes=2**20)
    stats = chunked_stats(problem, given)
    loss = stats.logprob.sum() - stats.entropy.square().sum()
    first = torch.autograd.grad(loss, problem.leaves, retain_graph=True)
    close(torch.autograd.grad(loss, problem.leaves), first, 1e-13)


def test_the_loss_inside_is_scaled_by_what_follows_and_handed_over_once() -> None:
    problem = Problem.random(9, 21)

    def total():
        return linear_token_loss(problem.hidden, problem.weight, problem.target, lambda s, r: -s.logprob)[0]

    plain = torch.autograd.grad(total(), problem.leaves[:2])
    again = total()
    close(torch.autograd.grad(3 * again, problem.leaves[:2], retain_graph=True), [3 * slope for slope in plain], 1e-13)
    with pytest.raises(RuntimeError, match="handed over already"):
        torch.autograd.grad(3 * again, problem.leaves[:2])


def test_the_loss_inside_sees_every_row_once_and_without_gradients_all_at_once() -> None:
    problem, seen = Problem.random(20, 11), []

    def loss(stats, rows):
        seen.append(rows)
        assert stats.logprob.shape == rows.shape
        return stats.logprob * rows

    total, stats = linear_token_loss(problem.hidden, problem.weight, problem.target, loss, chunk_bytes=8 * 11 * 3)
    assert len(seen) > 1
    assert torch.cat(seen).tolist() == list(range(20))
    torch.testing.assert_close(total, (stats.logprob * torch.arange(20)).sum())
    assert not stats.logprob.requires_grad
    seen.clear()
    with torch.no_grad():
        alone, _ = linear_token_loss(problem.hidden, problem.weight, problem.target, loss, chunk_bytes=8 * 11 * 3)
    assert len(seen) == 1
    torch.testing.assert_close(alone, total.detach())


def test_a_constant_loss_has_no_gradient() -> None:
    problem = Problem.random(5, 7)
    total, _ = linear_token_loss(problem.hidden, problem.weight, problem.target, lambda s, r: torch.ones(len(r)))
    assert total.item() == 5
    assert not any(slope.any() for slope in torch.autograd.grad(total, problem.leaves[:2]))


def test_a_loss_of_another_shape_is_refused() -> None:
    problem = Problem.random(5, 7)
    with pytest.raises(ValueError, match="one number for each"):
        linear_token_loss(problem.hidden, problem.weight, problem.target, lambda s, r: s.logprob.sum())


@DRIVERS
def test_logits_kept_in_two_bytes_are_exact_where_the_mass_is(slices: bool) -> None:
    """Centred, they lose 2^-9 of their distance from the likeliest token; as they are, 2^-9 of themselves."""
    problem = Problem.random(60, 900, 32, torch.float32)
    with torch.no_grad():
        problem.weight.mul_(0.6)
        problem.hidden[:, 0], problem.weight[:, 0] = 30.0, 1.0  # an offset of 30 in all logits
    given = task(keep_bytes=2**30, kept_dtype=torch.bfloat16, slices=slices, rows=9000)
    upstream = upstream_of(given, 60, torch.float32)
    stats = chunked_stats(problem, given)
    exact = problem.double()
    truth = reference_stats(exact, given)
    assert (stats.logprob - truth.logprob).detach().abs().max() < 1e-4  # statistics come from the logits before
    wanted = slopes(truth, exact, {name: slope.double() for name, slope in upstream.items()})
    for a, b in zip(slopes(stats, problem, upstream), wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < 4e-3


@DRIVERS
@pytest.mark.parametrize("native", [False, True], ids=["widened", "native"])
def test_bfloat16_operands_keep_their_precision(native: bool, slices: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.kernels.task.multiplies_bfloat16", lambda: native)  # slow where it is not, but right
    wide = Problem.random(70, 1300, 48, torch.float32)
    low = [leaf.detach().bfloat16().requires_grad_() for leaf in wide.leaves]
    problem = Problem(*low, wide.target, wide.inverse)
    given = task({"softcap": 20.0}, rows=13000, slices=slices)
    upstream = upstream_of(given, 70, torch.float32)
    stats, exact = chunked_stats(problem, given), problem.double()
    truth = reference_stats(exact, given)
    for name in ("logprob", "entropy"):
        assert (getattr(stats, name) - getattr(truth, name)).detach().abs().max() < 2e-5
    wanted = slopes(truth, exact, {name: slope.double() for name, slope in upstream.items()})
    for a, b in zip(slopes(stats, problem, upstream), wanted, strict=True):
        assert a.dtype == torch.bfloat16
        assert float((a.double() - b).norm() / b.norm()) < 4e-3
    total, _ = linear_token_loss(
        problem.hidden, problem.weight, problem.target,
        lambda s, r: upstream["logprob"][r] * s.logprob + upstream["entropy"][r] * s.entropy,
        bias=problem.bias, softcap=20.0, temperature=1 / problem.inverse, chunk_bytes=4 * 1300 * 16,
    )  # fmt: skip
    for a, b in zip(torch.autograd.grad(total, problem.leaves), wanted, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 4e-3


def test_what_a_kept_byte_buys() -> None:
    given = task(keep_bytes=1000, kept_dtype=torch.bfloat16)
    kept = Kept.allocate(50, 100, torch.empty(0), given)
    assert kept is not None
    assert (len(kept), kept.logits.dtype) == (5, torch.bfloat16)
    assert Kept.allocate(50, 501, torch.empty(0), given) is None


@pytest.mark.parametrize(
    ("count", "largest"), [(0, 5), (1, 5), (2048, 341), (100, 16), (17, 16), (10**9, 7), (33, 100)]
)
def test_chunks_are_even_and_cover_everything(count: int, largest: int) -> None:
    size = even(count, largest)
    assert 1 <= size <= max(largest, 1)
    if count < 10**6:
        pieces = list(parts(count, size))
        assert sum(piece.stop - piece.start for piece in pieces) == count
        assert len(pieces) <= -(-count // (largest - largest % 16 or largest))


def test_more_logits_than_32_bits_can_number() -> None:
    """On the meta device, where shapes are real and memory is not: 15,000 rows of 151,936 tokens in one chunk."""
    n, v = 15_000, 151_936
    assert n * v > 2**31
    hidden, weight = torch.empty(n, 4, device="meta"), torch.empty(v, 4, device="meta")
    target, inverse = torch.empty(n, dtype=torch.long, device="meta"), torch.empty(n, device="meta")
    assert Buffer(inverse).of(n, v).stride() == (v, 1)
    figures, argmax = figures_of(hidden, weight, target, inverse, None, task(rows=n * v))
    assert figures.shape == (5, n)
    assert argmax.shape == (n,)
