"""The fused forward pass of the Triton room, on a CPU through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.kernels_triton.truth import figures_of, off_by
from trainer.kernels import fused_triton, verdict_triton
from trainer.kernels.fused_triton import TILINGS, Tiling, fits, fused_statistics, shares_of, tilings_for
from trainer.kernels.wants import Shape, Wants

SMALL = Tiling(rows=8, columns=128, depth=16, warps=4, stages=2)
ALL = Wants(moments=True, second=0.7)


@pytest.fixture(autouse=True)
def several_shares(monkeypatch) -> None:
    monkeypatch.setattr(fused_triton, "TILES_A_SHARE", 1)
    monkeypatch.setattr(fused_triton, "GROUP", 2)


def operands(count: int, vocabulary: int, width: int):
    """Return hidden states (multiples of 1/8, so that products are exact), weight, target, 1 / temperature."""
    hidden = (torch.randn(count, width) * 8).round() / 8
    weight = (torch.randn(vocabulary, width) * 8).round() / 8
    return hidden, weight, torch.randint(vocabulary, (count,)), torch.rand(count) + 0.5


@pytest.mark.parametrize(
    ("vocabulary", "width", "shares", "wants", "shape"),
    [
        (1, 16, 1, Wants(), Shape()),
        (17, 40, 1, ALL, Shape()),
        (1024, 24, 8, Wants(second=9.0), Shape(scale=0.3)),
        (1100, 40, 8, ALL, Shape(scale=0.6, softcap=9.0)),
    ],
)
def test_figures_agree_with_float64(vocabulary: int, width: int, shares: int, wants: Wants, shape: Shape) -> None:
    hidden, weight, target, inverse = operands(19, vocabulary, width)
    assert shares_of(vocabulary, SMALL) == shares
    hidden[2] *= 8  # nearly one-hot
    hidden[3] = 0  # uniform, all tied
    hidden[4, 1] = torch.nan
    inverse[5:7] = torch.tensor([20.0, 0.05])
    target[7:9] = torch.tensor([0, vocabulary - 1])
    bias = torch.randn(vocabulary)
    bias[vocabulary // 4 : vocabulary // 2] = -torch.inf  # whole tiles of banned tokens
    options = {"shape": shape, "wants": wants}
    found, argmax = fused_statistics(hidden, weight, target, inverse, bias=bias, **options, tiling=SMALL)
    product = hidden.double() @ weight.double().T
    truth = figures_of(product, target=target, inverse=inverse.double(), bias=bias.double(), **options)
    broken = truth["lse"].isnan()
    scale = (product * inverse[:, None] / min(1, wants.second or 1)).abs().amax(1).where(~broken, 0)
    for name, values in zip(wants.figures, found, strict=True):
        assert torch.equal(values.isnan(), broken), f"{name}: NaN left its row"
        worst = off_by(values, truth[name], scale).where(~broken, 0)
        assert worst.max() <= 1, f"{name}: {worst.tolist()}"
    reached = figures_of(product, target=argmax, inverse=inverse.double(), bias=bias.double(), **options)["logprob"]
    best = truth["max_logit"] - truth["lse"]
    assert (off_by(reached, best, scale).where(~broken, 0) <= 1).all()


def test_a_row_is_bitwise_the_same_among_other_rows_and_in_other_numbers() -> None:
    hidden, weight, target, inverse = operands(14, 520, 32)
    order = torch.randperm(14)

    def figures(choice):
        return fused_statistics(
            hidden[choice], weight, target[choice], inverse[choice],
            bias=None, shape=Shape(), wants=ALL, tiling=SMALL,
        )[0]  # fmt: skip

    whole = figures(slice(None))
    assert torch.equal(figures(order), whole[:, order])
    assert torch.equal(figures(slice(9, 12)), whole[:, 9:12])


def test_shares_depend_on_the_vocabulary_alone_and_none_is_empty() -> None:
    for tiling in TILINGS.values():
        for vocabulary in (1, 127, 32_000, 49_152, 151_936, 262_144):
            shares = shares_of(vocabulary, tiling)
            assert shares & (shares - 1) == 0
            assert shares <= -(-vocabulary // tiling.columns)


def test_calls_that_the_kernel_does_not_cover_are_told_apart() -> None:
    hidden, weight = torch.zeros(2, 64, dtype=torch.bfloat16), torch.zeros(9, 64, dtype=torch.bfloat16)
    assert fits(hidden, weight, ALL)
    assert not fits(hidden.float(), weight.float(), ALL)
    assert not fits(hidden, weight, Wants(min_p=0.1))
    assert not fits(hidden, weight, Wants(top_p=0.9))
    assert not fits(hidden[:, :3], weight[:, :3], ALL), "rows that are no multiple of 16 bytes"
    assert not fits(hidden, torch.zeros(64, 9, dtype=torch.bfloat16).T, ALL)
    assert set(tilings_for(ALL)) | set(tilings_for(Wants())) == set(TILINGS)


def test_a_verdict_is_kept_for_later_processes_and_a_damaged_file_is_asked_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert verdict_triton.kept() == {}
    verdict_triton.keep({"a head": {"choice": "twin"}})
    assert verdict_triton.kept() == {"a head": {"choice": "twin"}}
    verdict_triton.verdict_file().write_text("{")
    assert verdict_triton.kept() == {}


def test_the_environment_settles_the_choice(monkeypatch) -> None:
    hidden, weight = torch.zeros(2, 64), torch.zeros(9, 64)
    for said, expected in (("twin", "twin"), ("off", None)):
        monkeypatch.setenv(verdict_triton.VARIABLE, said)
        assert verdict_triton.preferred(hidden, weight, None, Shape(), Wants()) == expected
    monkeypatch.setenv(verdict_triton.VARIABLE, "fast")
    with pytest.raises(ValueError, match="ISENTROPE_FUSED_FORWARD is 'fast'; choose auto, off, twin"):
        verdict_triton.preferred(hidden, weight, None, Shape(), Wants())


@pytest.mark.parametrize(
    ("times", "choice"), [((3.0, 2.0, 1.0), "wide"), ((1.0, 2.0, 1.0), "wide"), ((1.0, 2.0, 3.0), None)]
)
def test_the_fastest_way_is_chosen_and_a_wrong_one_never(times, choice, monkeypatch) -> None:
    clock = iter(times * verdict_triton.ROUNDS)
    monkeypatch.setattr(verdict_triton, "milliseconds", lambda way: next(clock))
    monkeypatch.setattr(verdict_triton, "PROBE_ROWS", 5)
    weight = torch.randn(150, 64)
    found = verdict_triton.measured(weight, None, Shape(), Wants())
    assert found["choice"] == choice
    assert found["problems"] == {}
    clock = iter((1.0,) * verdict_triton.ROUNDS)
    monkeypatch.setattr(verdict_triton, "wrong", lambda way, truth: "it is wrong")
    assert verdict_triton.measured(weight, None, Shape(), Wants())["choice"] is None


def test_wrong_figures_are_noticed() -> None:
    truth = torch.randn(5, 40)
    assert verdict_triton.wrong(lambda: (truth.clone(), None), truth) is None
    broken = truth.clone()
    broken[2, 7] += 0.1
    assert "differs" in verdict_triton.wrong(lambda: (broken, None), truth)
    broken[2, 7] = torch.nan
    assert "inf" in verdict_triton.wrong(lambda: (broken, None), truth)
    assert "ZeroDivisionError" in verdict_triton.wrong(lambda: 1 / 0, truth)


def test_no_rows() -> None:
    hidden, weight, target, inverse = operands(0, 20, 16)
    figures, argmax = fused_statistics(
        hidden, weight, target, inverse, bias=None, shape=Shape(), wants=ALL, tiling=SMALL
    )
    assert figures.shape == (len(ALL.figures), 0)
    assert argmax.shape == (0,)
