"""The Triton room behind the public functions, on a CPU through Triton's interpreter."""

from __future__ import annotations

import torch

from trainer.kernels import linear_logprob_entropy, linear_token_loss
from trainer.kernels.rooms import choose_room, triton_disagrees

OPTIONS = {"moments": True, "logit_scale": 0.8, "softcap": 15.0, "second_temperature": 1.4, "min_p": 0.05}


def operands(shape: tuple[int, ...], vocabulary: int = 300, width: int = 24):
    hidden = torch.randn(*shape, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    bias = torch.randn(vocabulary, requires_grad=True)
    return hidden, weight, bias, torch.randint(vocabulary, shape)


def test_statistics_and_gradients_equal_the_float64_reference() -> None:
    hidden, weight, bias, target = operands((2, 6))
    target[0, 2] = -100
    temperature = torch.rand(2, 6) + 0.5
    upstream = {name: torch.randn(2, 6, dtype=torch.float64) for name in ("logprob", "entropy", "logprob2", "entropy2")}
    upstream["entropy"][1] = upstream["logprob"][1] = 0
    upstream["entropy2"][1, :4] = upstream["logprob2"][1, :4] = 0  # rows that the backward leaves out

    def everything(room: str, dtype: torch.dtype):
        given = [part.detach().to(dtype).requires_grad_() for part in (hidden, weight, bias)]
        stats = linear_logprob_entropy(
            *given[:2], target, bias=given[2], temperature=temperature, ignore_index=-100, room=room,
            chunk_bytes=5 * 300 * 4, **OPTIONS,
        )  # fmt: skip
        loss = sum((getattr(stats, name) * g.to(dtype)).sum() for name, g in upstream.items())
        return stats, torch.autograd.grad(loss, given)

    found, gradients = everything("triton", torch.float32)
    truth, expected = everything("reference", torch.float64)
    for name in ("logprob", "entropy", "lse", "sum_p2", "sum_p2_logp", "entropy_gain", "logprob2", "entropy2",
                 "kept_mass", "kept_logprob"):  # fmt: skip
        torch.testing.assert_close(getattr(found, name).double(), getattr(truth, name), rtol=1e-5, atol=2e-6)
    for one, other in zip(gradients, expected, strict=True):
        assert (one.double() - other).norm() < 1e-6 * other.norm()


def test_a_frozen_weight_and_kept_logits_change_no_gradient() -> None:
    hidden, weight, bias, target = operands((4,))

    def d_hidden(**options):
        stats = linear_logprob_entropy(hidden, options.pop("weight", weight), target, bias=bias, **options)
        return torch.autograd.grad((stats.logprob - 0.3 * stats.entropy).sum(), hidden)[0]

    expected = d_hidden(room="chunked")
    for options in ({"weight": weight.detach()}, {"keep_bytes": 3 * 300 * 4}, {"invariant": True}):
        torch.testing.assert_close(d_hidden(room="triton", **options), expected, rtol=1e-5, atol=1e-6)


def test_a_loss_inside_the_operator_has_the_gradients_of_one_outside() -> None:
    hidden, weight, bias, target = operands((9,))
    advantage = torch.randn(9)
    advantage[3:6] = 0

    def loss(stats, rows):
        return -advantage[rows] * (stats.logprob + 0.1 * stats.entropy)

    total, inside = linear_token_loss(
        hidden, weight, target, loss, bias=bias, room="triton", chunk_bytes=4 * 300 * 4, temperature=0.9
    )
    stats = linear_logprob_entropy(hidden, weight, target, bias=bias, room="triton", temperature=0.9)
    outside = loss(stats, torch.arange(9)).sum()
    torch.testing.assert_close(total, outside, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(inside.entropy, stats.entropy, rtol=1e-6, atol=1e-6)
    for one, other in zip(
        *(torch.autograd.grad(loss, [hidden, weight, bias]) for loss in (total, outside)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_no_rows_and_one_token() -> None:
    hidden, weight, bias, target = operands((0,), vocabulary=1, width=8)
    stats = linear_logprob_entropy(hidden, weight, target, bias=bias, room="triton")
    assert stats.logprob.shape == (0,)
    hidden, weight, bias, target = operands((3,), vocabulary=1, width=8)
    stats = linear_logprob_entropy(hidden, weight, target, bias=bias, room="triton")
    assert (stats.logprob == 0).all()
    assert (stats.entropy == 0).all()


def test_the_room_can_be_asked_for_where_the_interpreter_runs_and_passes_its_own_check() -> None:
    assert choose_room("cpu", "triton")[0] == "triton"
    assert choose_room("cpu")[0] == "chunked"
    assert triton_disagrees(torch.device("cpu")) is None


def test_the_check_notices_a_miscompiled_program(monkeypatch) -> None:
    from trainer.kernels import rooms

    example, calls = rooms._example, []

    def faulty(room, *rest):
        figures, gradient = example(room, *rest)
        calls.append(room.name)
        return (figures + 1e-2, gradient) if room.name == "triton" else (figures, gradient)

    monkeypatch.setattr(rooms, "_example", faulty)
    assert "differ from torch's" in rooms.triton_disagrees(torch.device("cpu"))
    assert calls == ["triton", "chunked"]
