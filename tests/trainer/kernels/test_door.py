"""What the door accepts, what it refuses and how it says so, and which room it chooses."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from tests.trainer.kernels.problems import Problem, seed_all
from trainer.kernels import choose_room, linear_logprob_entropy, linear_token_loss, rooms

ROOMS = pytest.mark.parametrize("room", ["reference", "chunked"])
DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh() -> None:
    seed_all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden": torch.zeros(3, 6)}, r"hidden \(3, 6\) and weight \(7, 5\) do not fit"),
        ({"weight": torch.zeros(7, 5, 1)}, "weight .* do not fit"),
        ({"weight": torch.zeros(0, 5)}, "weight .* do not fit"),
        ({"weight": torch.zeros(7, 5).bfloat16()}, "hidden is torch.float32 and weight is torch.bfloat16; cast"),
        ({"bias": torch.zeros(7).double()}, "bias is torch.float64; cast"),
        ({"bias": torch.zeros(4)}, "bias has shape"),
        ({"hidden": torch.zeros(3, 5).int()}, "hidden is torch.int32; give floating point"),
        ({"weight": torch.zeros(7, 5, device="meta")}, "hidden is on cpu and weight on meta"),
        ({"target": torch.zeros(2, dtype=torch.long)}, "target has shape"),
        ({"target": torch.zeros(3)}, "target is torch.float32; give token numbers"),
        ({"target": torch.tensor([0, 7, 1])}, "target holds 7, outside the vocabulary of 7"),
        ({"target": torch.tensor([0, -100, 1])}, "target holds -100.*ignore_index"),
        ({"target": torch.tensor([0, -1, -100]), "ignore_index": -100}, "target holds -1,"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": torch.ones(2)}, "temperature has shape"),
        ({"temperature": torch.tensor([1.0, 0.0, 1.0])}, "temperature holds a number that is not above 0"),
        ({"temperature": torch.tensor(math.nan)}, "temperature holds"),
        ({"second_temperature": 0.0}, "second_temperature is 0.0"),
        ({"softcap": 0.0}, "softcap is 0.0"),
        ({"softcap": math.nan}, "softcap is nan"),
        ({"logit_scale": math.inf}, "logit_scale is inf"),
        ({"min_p": 1.5}, "min_p is 1.5; give a probability"),
        ({"top_p": -0.1}, "top_p is -0.1; give a probability"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0"),
        ({"room": "attic"}, "room is 'attic'.*choose auto"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, says: str) -> None:
    fitting = {"hidden": torch.zeros(3, 5), "weight": torch.zeros(7, 5), "target": torch.zeros(3, dtype=torch.long)}
    with pytest.raises(ValueError, match=says):
        linear_logprob_entropy(**{**fitting, **change})
    with pytest.raises(ValueError, match=says):
        linear_token_loss(**{**fitting, **change}, loss=lambda stats, rows: stats.logprob)


def test_a_negative_budget_is_named() -> None:
    with pytest.raises(ValueError, match="keep_bytes is -1"):
        linear_logprob_entropy(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1, dtype=torch.long), keep_bytes=-1)


@ROOMS
def test_ignored_rows_are_zero_and_have_no_gradient_whatever_they_hold(room: str) -> None:
    problem = Problem.random(12, 19)
    gone = torch.tensor([0, 5, 6, 11])
    target = problem.target.index_fill(0, gone, -100)
    spoilt = problem.hidden.detach().clone()
    spoilt[gone] = torch.nan
    spoilt.requires_grad_()
    stats = linear_logprob_entropy(
        spoilt, problem.weight, target, bias=problem.bias, ignore_index=-100, room=room, moments=True
    )
    plain = linear_logprob_entropy(problem.hidden, problem.weight, problem.target, bias=problem.bias, room="reference")
    live = torch.tensor([row for row in range(12) if row not in gone.tolist()])
    torch.testing.assert_close(stats.logprob[live], plain.logprob[live])
    for value in (stats.logprob, stats.entropy, stats.lse, stats.sum_p2, stats.argmax):
        assert not value[gone].any()
    found = torch.autograd.grad((stats.logprob + stats.entropy).sum(), [spoilt, problem.weight, problem.bias])
    wanted = torch.autograd.grad((plain.logprob + plain.entropy)[live].sum(), problem.leaves)
    assert not found[0][gone].any()
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@ROOMS
def test_the_loss_gets_row_numbers_of_what_was_given(room: str) -> None:
    problem = Problem.random(12, 19)
    target = problem.target.index_fill(0, torch.tensor([1, 2, 9]), -1).view(3, 4)
    slope, seen = torch.randn(12, dtype=torch.float64), []

    def loss(stats, rows):
        seen.extend(rows.tolist())
        return slope[rows] * stats.logprob

    total, stats = linear_token_loss(
        problem.hidden.view(3, 4, 5), problem.weight, target, loss, ignore_index=-1, room=room, chunk_bytes=8 * 19 * 2
    )
    assert seen == [0, 3, 4, 5, 6, 7, 8, 10, 11]
    assert stats.logprob.shape == (3, 4)
    torch.testing.assert_close(total, (stats.logprob.flatten() * slope).sum())
    (found,) = torch.autograd.grad(total, problem.hidden)
    plain = linear_logprob_entropy(problem.hidden, problem.weight, target.flatten(), ignore_index=-1, room="reference")
    torch.testing.assert_close(found, torch.autograd.grad((plain.logprob * slope).sum(), problem.hidden)[0])


@ROOMS
def test_everything_ignored(room: str) -> None:
    problem = Problem.random(4, 6)
    target = torch.full((4,), -100)
    stats = linear_logprob_entropy(problem.hidden, problem.weight, target, ignore_index=-100, room=room)
    found = torch.autograd.grad(stats.entropy.sum(), [problem.hidden, problem.weight])
    assert not any(slope.any() for slope in found)
    total, _ = linear_token_loss(
        problem.hidden, problem.weight, target, lambda s, r: s.entropy, ignore_index=-100, room=room
    )
    assert total.item() == 0
    assert not any(slope.any() for slope in torch.autograd.grad(total, [problem.hidden, problem.weight]))


@pytest.mark.parametrize(
    "form", ["three axes", "expanded", "transposed", "strided", "both strided", "int32", "one row"]
)
def test_any_layout_gives_the_numbers_of_the_plain_one(form: str) -> None:
    problem = Problem.random(6, 14)
    hidden, weight, target = problem.hidden, problem.weight, problem.target
    heat = 1 / problem.inverse
    if form == "three axes":
        hidden, target, heat = hidden.view(2, 3, 5), target.view(2, 3), heat.view(2, 3)
    elif form == "expanded":
        hidden = hidden[:1].expand(6, 5)
    elif form == "transposed":
        hidden, weight = hidden.T.contiguous().T, weight.T.contiguous().T
    elif form == "strided":
        hidden, weight = hidden.repeat(1, 2)[:, :5], weight.repeat(1, 3)[:, :5]
    elif form == "both strided":
        weight = weight.repeat_interleave(2, 1)[:, ::2].repeat_interleave(2, 0)[::2]
    elif form == "int32":
        target = target.int()
    else:
        hidden, target, heat = hidden[0], target[0], heat[0]
    loss = []
    for room in ("chunked", "reference"):
        stats = linear_logprob_entropy(hidden, weight, target, temperature=heat, bias=problem.bias, room=room)
        assert stats.logprob.shape == stats.argmax.shape == target.shape
        loss.append((stats.logprob - 0.3 * stats.entropy).sum())
    torch.testing.assert_close(*loss)
    pairs = zip(*(torch.autograd.grad(value, problem.leaves) for value in loss), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)


def test_a_tied_weight_gets_both_gradients() -> None:
    table, ids = torch.randn(11, 4, dtype=torch.float64, requires_grad=True), torch.tensor([1, 5, 5, 0])
    found = [
        torch.autograd.grad(linear_logprob_entropy(table[ids].tanh(), table, ids, room=room).logprob.sum(), table)[0]
        for room in ("chunked", "reference")
    ]
    torch.testing.assert_close(*found)


def test_a_second_derivative_is_refused() -> None:
    problem = Problem.random(3, 5)
    stats = linear_logprob_entropy(problem.hidden, problem.weight, problem.target)
    (slope,) = torch.autograd.grad(stats.logprob.square().sum(), problem.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_without_gradients_nothing_is_kept_for_them() -> None:
    problem = Problem.random(3, 5)
    with torch.no_grad():
        stats = linear_logprob_entropy(problem.hidden, problem.weight, problem.target, keep_bytes=2**20)
    assert not stats.logprob.requires_grad


def test_the_choice_of_room_is_explained_logged_once_and_overridable(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(rooms.VARIABLE, raising=False)
    rooms._automatic.cache_clear()
    with caplog.at_level(logging.INFO, logger=rooms.__name__):
        assert choose_room("cpu") == choose_room(DEVICE) == ("chunked", "Triton has no kernels for cpu")
    assert [record.getMessage() for record in caplog.records] == ["room chunked on cpu: Triton has no kernels for cpu"]
    monkeypatch.setenv(rooms.VARIABLE, "reference")
    name, why = choose_room("cpu")
    assert name == "reference"
    assert rooms.VARIABLE in why
    assert choose_room("cpu", "chunked") == ("chunked", "asked for")
    monkeypatch.setenv(rooms.VARIABLE, "cellar")
    with pytest.raises(ValueError, match="ISENTROPE_KERNEL_ROOM is 'cellar'"):
        linear_logprob_entropy(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1, dtype=torch.long))


def test_triton_without_cuda_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"room triton cannot run here: .*Triton.*room='chunked'"):
        choose_room("cpu", "triton")
