"""The Triton room on a CUDA device: the whole grid, bfloat16, sizes and promises that the interpreter cannot show."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

from tests.trainer.kernels_triton.truth import PLAIN, awkward_rows, check_pair, figures_of
from trainer.kernels import fused_triton, linear_logprob_entropy, linear_token_loss, rows_triton, verdict_triton
from trainer.kernels.fused_triton import TILINGS, fused_statistics
from trainer.kernels.rooms import choose_room, triton_disagrees
from trainer.kernels.wants import Shape, Wants, row_scalars

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
ALL = Wants(moments=True, second=0.7, min_p=0.02)
BENT = Shape(scale=0.6, softcap=12.0)
VOCABULARIES = (1, 17, 1000, 1023, 1024, 1025, 1100, 151_936)
MEDIAN, WORST = 2e-5, 5e-4  # nats, of log-probs and entropies against float64 of the same bfloat16 operands
GRADIENT = 4e-3  # relative, by the norm: one rounding to bfloat16
ON_HOPPER = torch.cuda.get_device_capability() >= fused_triton.CAPABILITY


@pytest.fixture(autouse=True)
def on_the_gpu():
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    with torch.device("cuda"):
        yield
    torch.cuda.empty_cache()


def operands(count: int, vocabulary: int, width: int, dtype=torch.bfloat16, sharpness: float = 4.0):
    """Return hidden, weight, target such that logits have a spread of `sharpness`."""
    hidden = torch.randn(count, width).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width) * sharpness / width**0.5).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (count,))


def outcome(room: str, hidden, weight, target, upstream, **options):
    """Return statistics and the gradients by hidden and weight of the weighted log-probs and entropies."""
    stats = linear_logprob_entropy(hidden, weight, target, room=room, **options)
    loss = (stats.logprob * upstream[0]).sum() + (stats.entropy * upstream[1]).sum()
    return stats, torch.autograd.grad(loss, [hidden, weight])


def truth_of(hidden, weight, target, upstream, **options):
    wide = [part.detach().double().requires_grad_() for part in (hidden, weight)]
    return outcome("reference", *wide, target, upstream.double(), **options)


def far(found, truth) -> float:
    return float((found.double() - truth).norm() / truth.norm().clamp(min=1e-30))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_awkward_rows_agree_with_float64(vocabulary: int) -> None:
    product, target, inverse = (part.cuda() for part in awkward_rows(vocabulary))
    check_pair(product, target, inverse)
    if vocabulary > 17:
        check_pair(product, target, inverse, bias=torch.randn(vocabulary), shape=BENT, wants=ALL)


@pytest.mark.parametrize("count", [0, 1, 127, 129])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_bfloat16_operands_agree_with_float64_of_the_same_values(count: int, vocabulary: int) -> None:
    for width in (200, 129):
        hidden, weight, target = operands(count, vocabulary, width)
        upstream = torch.randn(2, count)
        stats, gradients = outcome("triton", hidden, weight, target, upstream)
        assert stats.logprob.dtype == torch.float32
        if not count:
            assert all((gradient == 0).all() for gradient in gradients)
            continue
        truth, expected = truth_of(hidden, weight, target, upstream)
        for name in ("logprob", "entropy"):
            error = (getattr(stats, name).double() - getattr(truth, name)).abs()
            assert error.median() <= MEDIAN, name
            assert error.max() <= WORST, name
        if vocabulary > 1:
            assert all(far(one, other) < GRADIENT for one, other in zip(gradients, expected, strict=True))


def test_float32_operands_agree_with_float64() -> None:
    hidden, weight, target = operands(129, 1100, 64, torch.float32)
    upstream = torch.randn(2, 129)
    stats, gradients = outcome("triton", hidden, weight, target, upstream)
    truth, expected = truth_of(hidden, weight, target, upstream)
    torch.testing.assert_close(stats.logprob.double(), truth.logprob, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(stats.entropy.double(), truth.entropy, rtol=1e-6, atol=1e-5)
    assert all(far(one, other) < 1e-5 for one, other in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("offset", [30.0, -30.0, -120.0, 1e4, -1e4])
def test_a_constant_added_to_all_logits_changes_only_their_rounding(offset: float) -> None:
    hidden, weight, target = operands(64, 1100, 64, torch.float32)
    stats, _ = outcome("triton", hidden, weight, target, torch.ones(2, 64))
    moved, _ = outcome("triton", hidden, weight, target, torch.ones(2, 64), bias=torch.full((1100,), offset))
    room = 1e-5 + 4 * abs(offset) * torch.finfo(torch.float32).eps
    assert (stats.logprob - moved.logprob).abs().max() < room
    assert (stats.entropy - moved.entropy).abs().max() < room


def test_narrow_gradients_are_rounded_to_nearest_even() -> None:
    product, target = torch.randn(300, 5003) * 4, torch.randint(5003, (300,))
    inverse = torch.rand(300) + 0.5
    options = {"bias": None, "shape": Shape(), "wants": PLAIN}
    figures, _ = rows_triton.row_statistics(product, target, inverse, **options)
    upstream = {"logprob": torch.randn(300), "entropy": torch.randn(300)}
    scalars = row_scalars(dict(zip(PLAIN.figures, figures, strict=True)), upstream, inverse, PLAIN)
    wide, narrow = (
        rows_triton.logits_gradient_(product.clone(), target, inverse, scalars, first=0, dtype=dtype, **options)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(narrow, wide.bfloat16())


def test_two_runs_are_bitwise_equal_and_rows_do_not_see_each_other() -> None:
    hidden, weight, target = operands(700, 32_000, 256)
    upstream = torch.randn(2, 700)
    one, first = outcome("triton", hidden, weight, target, upstream)
    other, second = outcome("triton", hidden, weight, target, upstream)
    assert torch.equal(one.logprob, other.logprob)
    assert torch.equal(one.entropy, other.entropy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    product = torch.randn(500, 32_000)
    order = torch.randperm(500)
    options = {"bias": None, "shape": Shape(), "wants": ALL}
    whole, _ = rows_triton.row_statistics(product, target[:500], torch.ones(500), **options)
    moved, _ = rows_triton.row_statistics(product[order], target[:500][order], torch.ones(500), **options)
    assert torch.equal(moved, whole[:, order])


def test_the_contracts_agree_and_rows_without_gradient_cost_nothing_but_are_right() -> None:
    hidden, weight, target = operands(900, 32_000, 256)
    upstream = torch.randn(2, 900)
    upstream[:, torch.rand(900) < 0.8] = 0
    truth, expected = truth_of(hidden, weight, target, upstream)

    def loss(stats, rows):
        return stats.logprob * upstream[0, rows] + stats.entropy * upstream[1, rows]

    total, stats = linear_token_loss(hidden, weight, target, loss, room="triton", chunk_bytes=2**25)
    inside = torch.autograd.grad(total, [hidden, weight])
    recomputed = outcome("triton", hidden, weight, target, upstream, chunk_bytes=2**25)[1]
    kept = outcome("triton", hidden, weight, target, upstream, keep_bytes=2**25)[1]
    for gradients, allowed in ((recomputed, GRADIENT), (inside, GRADIENT), (kept, 2 * GRADIENT)):  # kept in two bytes
        assert all(far(one, other) < allowed for one, other in zip(gradients, expected, strict=True))
    assert (stats.entropy.double() - truth.entropy).abs().median() < MEDIAN


def test_a_frozen_weight_gets_no_gradient_and_changes_none() -> None:
    hidden, weight, target = operands(200, 8_000, 128)
    stats = linear_logprob_entropy(hidden, weight.detach(), target, room="triton")
    (alone,) = torch.autograd.grad(stats.entropy.sum(), hidden)
    stats = linear_logprob_entropy(hidden, weight, target, room="triton")
    both = torch.autograd.grad(stats.entropy.sum(), [hidden, weight])
    assert torch.equal(alone, both[0])


def test_a_row_that_is_not_a_number_and_a_target_outside_stay_alone() -> None:
    hidden, weight, target = operands(40, 5_000, 64)
    with torch.no_grad():
        hidden[7, 3] = torch.nan
        target[9] = 5_000
        stats = linear_logprob_entropy(hidden, weight, target, room="triton")
    broken = stats.logprob.isnan()
    assert broken.nonzero().flatten().tolist() == [7, 9]


def test_more_than_two_to_the_31_logits_at_once() -> None:
    count, vocabulary = 16_384, 151_936
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GB of free GPU memory")
    hidden, weight, target = operands(count, vocabulary, 64)
    upstream = torch.zeros(2, count)
    upstream[:, -3:] = torch.randn(2, 3)
    stats, gradients = outcome("triton", hidden, weight, target, upstream, chunk_bytes=2**34)
    truth, expected = truth_of(hidden[-3:], weight, target[-3:], upstream[:, -3:])
    assert (stats.logprob[-3:].double() - truth.logprob).abs().max() < WORST
    assert far(gradients[0][-3:], expected[0]) < GRADIENT
    assert (gradients[0][:-3] == 0).all()
    assert far(gradients[1], expected[1]) < GRADIENT


@pytest.mark.skipif(not ON_HOPPER, reason="the fused forward needs compute capability 9.0")
@pytest.mark.parametrize("tiling", TILINGS)
def test_the_fused_forward_agrees_with_float64_and_is_batch_invariant(tiling: str) -> None:
    for vocabulary, width in ((17, 64), (1100, 200), (151_936, 896)):
        hidden, weight, target = (part.detach() for part in operands(300, vocabulary, width))
        hidden[5] = 0
        hidden[6, 2] = torch.nan
        inverse, wants = torch.rand(300) + 0.5, Wants(moments=True, second=1.3)
        options = {"bias": None, "shape": BENT, "wants": wants, "tiling": TILINGS[tiling]}
        figures, argmax = fused_statistics(hidden, weight, target, inverse, **options)
        truth = figures_of(
            hidden.double() @ weight.double().T, target, inverse.double(), bias=None, shape=BENT, wants=wants
        )
        sound = torch.arange(300) != 6
        for name, found in zip(wants.figures, figures, strict=True):
            error = ((found.double() - truth[name]).abs() / (1 + truth[name].abs()))[sound]
            assert error.median() <= MEDIAN, name
            assert error.max() <= WORST, name
            assert found[6].isnan(), name
        assert ((argmax >= 0) & (argmax < vocabulary)).all()
        for count in (1, 127, 129):
            part, _ = fused_statistics(hidden[-count:], weight, target[-count:], inverse[-count:], **options)
            assert torch.equal(part.nan_to_num(7), figures[:, -count:].nan_to_num(7)), count


@pytest.mark.skipif(not ON_HOPPER, reason="the fused forward needs compute capability 9.0")
def test_the_verdict_names_times_of_every_way_and_finds_none_of_them_wrong(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verdict_triton, "_known", {})
    hidden, weight, _ = (part.detach() for part in operands(64, 151_936, 896))
    for wants in (Wants(), Wants(moments=True)):
        choice = verdict_triton.preferred(hidden, weight, None, Shape(), wants)
        verdict = verdict_triton.kept()[verdict_triton.question(weight, None, Shape(), wants)]
        print(verdict)
        assert verdict["choice"] == choice
        assert verdict["problems"] == {}
        assert {"stored", *fused_triton.tilings_for(wants)} == set(verdict["milliseconds"])
        assert choice is None or verdict["milliseconds"][choice] <= verdict["milliseconds"]["stored"]


def test_the_triton_room_is_the_choice_on_this_gpu() -> None:
    assert triton_disagrees(torch.device("cuda")) is None
    assert choose_room("cuda")[0] == "triton"
