"""The rooms of linear_logprob_entropy against float64, each other and hand-made rows."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from trainer.kernels import linear_logprob_entropy

GOLDEN = Path(__file__).parents[2] / "golden"
ROOM_NAMES = ("reference", "chunked")


@pytest.fixture(autouse=True)
def fresh_seed() -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)


def operands(n: int, v: int, h: int = 7, dtype: torch.dtype = torch.float64):
    hidden = torch.randn(n, h, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, h, dtype=dtype, requires_grad=True)
    bias = torch.randn(v, dtype=dtype, requires_grad=True)
    return hidden, weight, bias, torch.randint(0, v, (n,))


def gradients(room: str, hidden, weight, bias, target, g_logprob, g_entropy, **options):
    """Return logprob, entropy and the three gradients of <g_logprob, logprob> + <g_entropy, entropy>."""
    stats = linear_logprob_entropy(hidden, weight, target, bias=bias, room=room, **options)
    loss = (stats.logprob * g_logprob).sum() + (stats.entropy * g_entropy).sum()
    return stats.logprob, stats.entropy, *torch.autograd.grad(loss, [hidden, weight, bias])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradcheck_passes_on_the_shipped_function(temperature: float) -> None:
    hidden, weight, bias, target = operands(5, 11)

    def both(hidden, weight, bias):
        stats = linear_logprob_entropy(
            hidden, weight, target, bias=bias, temperature=temperature, room="chunked", chunk_bytes=3 * 11 * 8 * 2
        )
        return stats.logprob, stats.entropy

    assert torch.autograd.gradcheck(both, (hidden, weight, bias))


@pytest.mark.parametrize(("n", "v", "h"), [(1, 1, 3), (127, 17, 7), (33, 1023, 5), (9, 1025, 33), (129, 252, 12)])
def test_chunked_equals_the_reference_with_gradients(n: int, v: int, h: int) -> None:
    hidden, weight, bias, target = operands(n, v, h)
    temperature = torch.rand(n, dtype=torch.float64) + 0.3
    upstream = torch.randn(2, n, dtype=torch.float64)
    expected = gradients("reference", hidden, weight, bias, target, *upstream, temperature=temperature)
    for budget in (1, 3 * v * 8 * 5, 2**26):
        found = gradients(
            "chunked", hidden, weight, bias, target, *upstream, temperature=temperature, chunk_bytes=budget
        )
        for name, a, b in zip(("logprob", "entropy", "d_hidden", "d_weight", "d_bias"), found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("room", ROOM_NAMES)
def test_the_rest_is_detached_and_true(room: str) -> None:
    hidden, weight, bias, target = operands(6, 40)
    stats = linear_logprob_entropy(hidden, weight, target, bias=bias, room=room, moments=True)
    logits = (hidden @ weight.T + bias).detach()
    p = logits.softmax(-1)
    torch.testing.assert_close(stats.lse, logits.logsumexp(-1))
    torch.testing.assert_close(stats.max_logit, logits.amax(-1))
    assert torch.equal(stats.argmax, logits.argmax(-1))
    torch.testing.assert_close(stats.sum_p2, (p * p).sum(-1))
    torch.testing.assert_close(stats.sum_p2_logp, (p * p * p.log()).sum(-1))
    free = logits.clone().requires_grad_()
    entropy = -(free.softmax(-1) * free.log_softmax(-1)).sum()
    (slope,) = torch.autograd.grad(entropy, free)
    torch.testing.assert_close(stats.entropy_gain, slope.square().sum(-1))
    for name in ("lse", "max_logit", "argmax", "sum_p2", "sum_p2_logp", "entropy_gain"):
        assert not getattr(stats, name).requires_grad, name


@pytest.mark.parametrize("room", ROOM_NAMES)
def test_golden_token_statistics(room: str) -> None:
    case = json.loads((GOLDEN / "token_stats__derived.json").read_text())
    logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64).flatten(0, 1).requires_grad_()  # [N, V]
    target = torch.tensor(case["inputs"]["actions"]).flatten()
    identity = torch.eye(logits.shape[1], dtype=torch.float64)
    stats = linear_logprob_entropy(logits, identity, target, room=room, moments=True)
    expected = {key: torch.tensor(value).flatten(0, 1) for key, value in case["outputs"].items() if key != "argmax"}
    pairs = {
        "log_prob": stats.logprob,
        "entropy": stats.entropy,
        "logsumexp": stats.lse,
        "sum_p2": stats.sum_p2,
        "sum_p2_logp": stats.sum_p2_logp,
        "max_log_prob": stats.max_logit - stats.lse,
    }
    for key, value in pairs.items():
        torch.testing.assert_close(
            value.detach(), torch.tensor(case["outputs"][key], dtype=torch.float64).flatten(), rtol=1e-10, atol=1e-12
        )
    assert stats.argmax.tolist() == torch.tensor(case["outputs"]["argmax"]).flatten().tolist()
    (gradient,) = torch.autograd.grad(stats.entropy.sum(), logits)
    torch.testing.assert_close(gradient, expected["grad_entropy_wrt_logits"].double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shift", [30.0, -120.0, 1e4, -1e4])
def test_a_constant_added_to_all_logits_changes_only_their_rounding(shift: float) -> None:
    n, v = 12, 300
    logits = (torch.randn(n, v) * 3 * 64).round() / 64  # multiples of 1/64 stay exact when 1e4 is added in float32
    target = torch.randint(0, v, (n,))
    plain = linear_logprob_entropy(logits, torch.eye(v), target, moments=True)
    moved = linear_logprob_entropy(logits + shift, torch.eye(v), target, moments=True)
    for name in ("logprob", "entropy", "sum_p2", "sum_p2_logp"):
        torch.testing.assert_close(getattr(moved, name), getattr(plain, name), rtol=1e-6, atol=1e-6)
    truth = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(moved.entropy.double(), -(truth.exp() * truth).sum(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_gradients_keep_their_precision_under_a_large_offset(shift: float) -> None:
    logits = (torch.randn(8, 50) * 64).round() / 64
    target = torch.randint(0, 50, (8,))
    moved = (logits + shift).requires_grad_()
    stats = linear_logprob_entropy(moved, torch.eye(50), target)
    (found,) = torch.autograd.grad(stats.logprob.sum() + stats.entropy.sum(), moved)
    exact = logits.double().requires_grad_()
    stats = linear_logprob_entropy(exact, torch.eye(50, dtype=torch.float64), target, room="reference")
    (expected,) = torch.autograd.grad(stats.logprob.sum() + stats.entropy.sum(), exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("room", ROOM_NAMES)
def test_banned_tokens_have_no_mass_and_no_gradient(room: str) -> None:
    hidden, weight, bias, _ = operands(4, 9)
    target = torch.tensor([0, 1, 2, 5])
    banned = bias.detach().clone()
    banned[[3, 5]] = -torch.inf
    banned.requires_grad_()
    stats = linear_logprob_entropy(hidden, weight, target, bias=banned, room=room, moments=True)
    kept = [0, 1, 2, 4, 6, 7, 8]
    alone = linear_logprob_entropy(
        hidden, weight[kept], torch.tensor([0, 1, 2, 0]), bias=banned[kept], room="reference", moments=True
    )
    torch.testing.assert_close(stats.logprob[:3], alone.logprob[:3])
    assert stats.logprob[3] == -torch.inf
    torch.testing.assert_close(stats.entropy, alone.entropy)
    torch.testing.assert_close(stats.sum_p2_logp, alone.sum_p2_logp)
    torch.testing.assert_close(stats.entropy_gain, alone.entropy_gain)
    loss = stats.logprob[:3].sum() + 0.7 * stats.entropy.sum()
    grads = torch.autograd.grad(loss, [hidden, weight, banned])
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert not grads[1][[3, 5]].any()
    assert not grads[2][[3, 5]].any()
    torch.testing.assert_close(
        grads[0], torch.autograd.grad(alone.logprob[:3].sum() + 0.7 * alone.entropy.sum(), hidden)[0]
    )


@pytest.mark.parametrize("room", ROOM_NAMES)
def test_one_hot_uniform_and_tied_rows(room: str) -> None:
    v = 64
    one_hot, uniform, tied = torch.zeros(v), torch.zeros(v), torch.zeros(v)
    one_hot[5], tied[[2, 7]] = 200.0, 100.0
    logits = torch.stack([one_hot, uniform, tied]).requires_grad_()
    stats = linear_logprob_entropy(logits, torch.eye(v), torch.tensor([5, 3, 7]), room=room, moments=True)
    assert stats.logprob.tolist() == pytest.approx([0, -math.log(v), -math.log(2)], abs=1e-6)
    assert stats.entropy.tolist() == pytest.approx([0, math.log(v), math.log(2)], abs=1e-5)
    assert stats.sum_p2.tolist() == pytest.approx([1, 1 / v, 0.5], abs=1e-6)
    (gradient,) = torch.autograd.grad(stats.entropy.sum(), logits)
    assert torch.isfinite(gradient).all()
    assert gradient[1].abs().max() < 1e-6


def test_logits_gradients_sum_to_zero_and_bounds_hold() -> None:
    hidden, weight, bias, target = operands(20, 33)
    logprob, entropy, *_, d_bias = gradients("chunked", hidden, weight, bias, target, torch.randn(20), torch.randn(20))
    assert abs(d_bias.sum()) < 1e-11
    assert (logprob <= 0).all()
    assert (entropy <= math.log(33)).all()
    assert (entropy >= 0).all()


def test_rows_without_gradient_cost_and_add_nothing() -> None:
    hidden, weight, bias, target = operands(10, 21)
    upstream = torch.randn(2, 10, dtype=torch.float64)
    upstream[:, [0, 3, 4, 9]] = 0
    _, _, d_hidden, d_weight, d_bias = gradients("chunked", hidden, weight, bias, target, *upstream)
    live = [1, 2, 5, 6, 7, 8]
    kept = hidden.detach()[live].requires_grad_()
    _, _, e_hidden, e_weight, e_bias = gradients("chunked", kept, weight, bias, target[live], *upstream[:, live])
    assert not d_hidden[[0, 3, 4, 9]].any()
    assert torch.equal(d_hidden[live], e_hidden)
    assert torch.equal(d_weight, e_weight)
    assert torch.equal(d_bias, e_bias)


def test_a_row_of_nan_stays_in_its_row() -> None:
    hidden, weight, bias, target = operands(5, 8)
    spoilt = hidden.detach().clone()
    spoilt[2] = torch.nan
    spoilt.requires_grad_()
    stats = linear_logprob_entropy(spoilt, weight, target, bias=bias)
    others = [0, 1, 3, 4]
    clean = linear_logprob_entropy(hidden[others], weight, target[others], bias=bias)
    torch.testing.assert_close(stats.logprob[others], clean.logprob)
    assert stats.entropy[2].isnan()
    upstream = torch.ones(5, dtype=torch.float64)
    upstream[2] = 0  # the loop masks it: then nothing of it may leak into the weights
    grads = torch.autograd.grad((stats.logprob[others]).sum(), [spoilt, weight])
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("used", ["logprob", "entropy", "neither"])
def test_missing_upstream_gradients(used: str) -> None:
    hidden, weight, bias, target = operands(6, 13)
    found, expected = (
        linear_logprob_entropy(hidden, weight, target, bias=bias, room=room) for room in ("chunked", "reference")
    )
    if used == "neither":
        grads = torch.autograd.grad((0 * found.logprob).sum(), [hidden, weight, bias])
        assert not any(grad.any() for grad in grads)
        return
    pairs = [torch.autograd.grad(getattr(stats, used).sum(), [hidden, weight, bias]) for stats in (found, expected)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_frozen_head_still_carries_gradient_to_the_states() -> None:
    hidden, weight, _, target = operands(6, 13)
    stats = linear_logprob_entropy(hidden, weight.detach(), target)
    (found,) = torch.autograd.grad(stats.logprob.sum(), hidden)
    stats = linear_logprob_entropy(hidden, weight, target, room="reference")
    torch.testing.assert_close(found, torch.autograd.grad(stats.logprob.sum(), hidden)[0])


@pytest.mark.parametrize("room", ROOM_NAMES)
def test_no_rows_and_one_token_vocabulary(room: str) -> None:
    hidden, weight, bias, target = operands(0, 5)
    stats = linear_logprob_entropy(hidden, weight, target, bias=bias, room=room, moments=True)
    assert stats.logprob.shape == stats.argmax.shape == (0,)
    grads = torch.autograd.grad(stats.logprob.sum() + stats.entropy.sum(), [hidden, weight, bias])
    assert [grad.shape for grad in grads] == [(0, 7), (5, 7), (5,)]
    hidden, weight, bias, target = operands(3, 1)
    stats = linear_logprob_entropy(hidden, weight, target, bias=bias, room=room, moments=True)
    assert stats.logprob.tolist() == stats.entropy.tolist() == [0, 0, 0]
    assert stats.sum_p2.tolist() == [1, 1, 1]


def test_permuted_rows_give_permuted_results() -> None:
    hidden, weight, bias, target = operands(31, 57)
    order = torch.randperm(31)
    plain = linear_logprob_entropy(hidden, weight, target, bias=bias)
    moved = linear_logprob_entropy(hidden[order], weight, target[order].int(), bias=bias)
    torch.testing.assert_close(moved.logprob, plain.logprob[order], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(moved.entropy, plain.entropy[order], rtol=1e-13, atol=1e-13)


def test_bfloat16_operands_give_float32_statistics_as_exact_as_their_values() -> None:
    hidden, weight, bias, target = operands(40, 9000, 64, torch.float32)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight, bias)]
    exact = [x.detach().double().requires_grad_() for x in low]
    upstream = torch.randn(2, 40)
    found = gradients("chunked", *low, target, *upstream, chunk_bytes=2**20)
    truth = gradients("reference", *exact, target, *upstream.double())
    assert found[0].dtype == torch.float32
    assert (found[0] - truth[0]).abs().max() < 2e-5
    assert (found[1] - truth[1]).abs().max() < 2e-5
    for a, b in zip(found[2:], truth[2:], strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() / b.norm() < 4e-3  # one rounding to bfloat16


def test_extreme_temperatures_strided_weights_and_autocast() -> None:
    hidden, weight, bias, _ = operands(6, 50, 8, torch.float32)
    target, strided = torch.randint(0, 50, (6,)), weight.detach().repeat(1, 2)[:, :8]
    for temperature in (0.05, 20.0):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = linear_logprob_entropy(hidden, strided, target, bias=bias, temperature=temperature)
        truth = linear_logprob_entropy(
            hidden.double(), weight.double(), target, bias=bias.double(), temperature=temperature, room="reference"
        )
        torch.testing.assert_close(found.logprob.double(), truth.logprob, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.entropy.double(), truth.entropy, rtol=1e-4, atol=1e-5)
