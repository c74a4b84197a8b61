"""Row statistics and logit gradients of the Triton room, on a CPU through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.kernels_triton.truth import awkward_rows, check_pair
from trainer.kernels import rows, rows_triton
from trainer.kernels.wants import Shape, Wants, row_scalars

PLAIN = Wants()
ALL = Wants(moments=True, second=0.7, min_p=0.02)
BENT = Shape(scale=0.6, softcap=12.0)


@pytest.fixture(autouse=True)
def several_blocks_a_row(monkeypatch) -> None:
    monkeypatch.setattr(rows_triton, "block", lambda vocabulary, heavy: 512)


@pytest.mark.parametrize("vocabulary", [1, 17, 1000, 1023, 1024, 1025, 1100])
def test_awkward_rows_agree_with_float64(vocabulary: int) -> None:
    check_pair(*awkward_rows(vocabulary))


def test_every_figure_with_soft_cap_scale_and_bias() -> None:
    product, target, inverse = awkward_rows(1100)
    check_pair(product, target, inverse, bias=torch.randn(1100), shape=BENT, wants=ALL)


def test_banned_tokens_have_no_mass_and_no_gradient() -> None:
    product, target, inverse = (part[6:9] for part in awkward_rows(1100))
    bias = torch.randn(1100)
    bias[::3], target[1] = -torch.inf, 300
    inverse = torch.ones(3)
    wants = Wants(moments=True, second=1.7)
    check_pair(product, target % 2 + 1, inverse, bias=bias, wants=wants)
    figures, _ = rows_triton.row_statistics(product, target, inverse, bias=bias, shape=Shape(), wants=wants)
    named = dict(zip(wants.figures, figures, strict=True))
    assert named["logprob"][1] == -torch.inf
    assert named["entropy"].isfinite().all()
    scalars = row_scalars(named, {"logprob": torch.ones(3), "entropy": torch.ones(3)}, inverse, wants)
    d = rows_triton.logits_gradient_(
        product, target, inverse, scalars, first=0, bias=bias, shape=Shape(), wants=wants, dtype=torch.float32
    )
    assert d[1, 300] == 1, "a banned target keeps the gradient of its own log-prob"
    d[1, 300] = 0
    assert (d[:, ::3][:, 1:] == 0).all()
    assert d.isfinite().all()


def test_a_row_of_banned_tokens_is_not_a_number_and_alone() -> None:
    product, bias = torch.randn(2, 40), torch.zeros(40)
    product[0] = -torch.inf
    figures, argmax = rows_triton.row_statistics(
        product, torch.tensor([3, 3]), torch.ones(2), bias=bias, shape=Shape(), wants=PLAIN
    )
    assert figures[:2, 0].isnan().all()
    assert figures[:, 1].isfinite().all()
    assert 0 <= argmax[0] < 40


@pytest.mark.parametrize(
    ("wants", "name"), [*((ALL, name) for name in ALL.differentiable), (Wants(min_p=0.1, top_p=0.8), "nucleus_entropy")]
)
def test_one_upstream_gradient_at_a_time_equals_the_torch_pair(wants: Wants, name: str) -> None:
    product, target, inverse = torch.randn(5, 130) * 3, torch.randint(130, (5,)), torch.rand(5) + 0.5
    figures, _ = rows.row_statistics(product, target, inverse, bias=None, shape=BENT, wants=wants)
    named = dict(zip(wants.figures, figures, strict=True))
    scalars = row_scalars(named, {name: torch.randn(5)}, inverse, wants)
    found, expected = (
        pair.logits_gradient_(
            product.clone(), target, inverse, scalars,
            first=0, bias=None, shape=BENT, wants=wants, dtype=torch.float32,
        )
        for pair in (rows_triton, rows)
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_slice_of_the_vocabulary_has_the_gradient_of_its_columns_bitwise() -> None:
    product, target, inverse = torch.randn(6, 900), torch.tensor([0, 511, 512, 811, 812, 899]), torch.ones(6)
    figures, _ = rows_triton.row_statistics(product, target, inverse, bias=None, shape=Shape(), wants=PLAIN)
    upstream = {"logprob": torch.randn(6), "entropy": torch.randn(6)}
    scalars = row_scalars(dict(zip(PLAIN.figures, figures, strict=True)), upstream, inverse, PLAIN)

    def gradient(first: int, last: int, dtype=torch.float32):
        part = product[:, first:last].clone()
        return rows_triton.logits_gradient_(
            part, target, inverse, scalars, first=first, bias=None, shape=Shape(), wants=PLAIN, dtype=dtype
        )

    whole = gradient(0, 900)
    assert torch.equal(gradient(512, 812), whole[:, 512:812])
    assert torch.equal(gradient(0, 900, torch.float16), whole.half()), "narrow results overwrite what was not yet read"


def test_repeats_permutations_and_other_rows_change_no_bit() -> None:
    product, target, inverse = (part[4:] for part in awkward_rows(1025))
    order = torch.randperm(10)

    def figures(choice):
        found, _ = rows_triton.row_statistics(
            product[choice], target[choice], inverse[choice], bias=None, shape=Shape(), wants=PLAIN
        )
        return found.nan_to_num(7)

    whole = figures(slice(None))
    assert torch.equal(figures(order), whole[:, order])
    assert torch.equal(figures(slice(3, 5)), whole[:, 3:5])


def test_rows_that_lie_beyond_two_to_the_31_elements(tmp_path) -> None:
    stride = 2**31 + 16
    sparse = torch.from_file(str(tmp_path / "sparse"), shared=True, size=stride + 8, dtype=torch.float32)
    product = sparse.as_strided((2, 8), (stride, 1))
    product[0], product[1] = torch.zeros(8), torch.arange(8.0)
    target, inverse = torch.tensor([0, 7]), torch.ones(2)
    figures, _ = rows_triton.row_statistics(product, target, inverse, bias=None, shape=Shape(), wants=PLAIN)
    expected, _ = rows.row_statistics(product.clone(), target, inverse, bias=None, shape=Shape(), wants=PLAIN)
    torch.testing.assert_close(figures, expected)
    scalars = row_scalars(dict(zip(PLAIN.figures, figures, strict=True)), {"logprob": torch.ones(2)}, inverse, PLAIN)
    d = rows_triton.logits_gradient_(
        product, target, inverse, scalars, first=0, bias=None, shape=Shape(), wants=PLAIN, dtype=torch.float32
    )
    torch.testing.assert_close(d.sum(1), torch.zeros(2), atol=1e-6, rtol=0)
    assert d[1, 7] > 0.3


def test_what_triton_does_not_cover_equals_the_torch_pair() -> None:
    product, target, inverse = torch.randn(4, 60), torch.randint(60, (4,)), torch.ones(4)
    for wants, given in ((Wants(top_p=0.8), product), (PLAIN, product.double())):
        options = {"bias": None, "shape": Shape(), "wants": wants}
        found, _ = rows_triton.row_statistics(given.clone(), target, inverse.to(given.dtype), **options)
        expected, _ = rows.row_statistics(given.clone(), target, inverse.to(given.dtype), **options)
        assert torch.equal(found, expected)


def test_no_rows() -> None:
    figures, argmax = rows_triton.row_statistics(
        torch.empty(0, 9), torch.empty(0, dtype=torch.long), torch.empty(0), bias=None, shape=Shape(), wants=ALL
    )
    assert figures.shape == (len(ALL.figures), 0)
    assert argmax.shape == (0,)
