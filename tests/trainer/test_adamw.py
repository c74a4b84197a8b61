"""AdamW: clipping inside the fused kernel; 8-bit moments, how far off they are, what they take, how they resume."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from torch import Tensor

from tests.trainer.runs import events, make, metrics, small, train
from trainer import eightbit
from trainer.adamw import Adamw, Adamw8
from trainer.config import OptimiserConfig
from trainer.eightbit import Packed, pack

CONFIG = OptimiserConfig(learning_rate=1e-2, weight_decay=0.1)


@pytest.fixture(autouse=True)
def seed() -> int:
    number = random.randrange(2**32)
    print(f"seed {number}")
    torch.manual_seed(number)
    return number


def eight(tensors: list[Tensor], config: OptimiserConfig = CONFIG) -> Adamw8:
    return Adamw8(tensors, config, sizes=[t.numel() for t in tensors], firsts=[0] * len(tensors))


def weights(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def test_clipping_inside_the_kernel_is_clipping_before_it():
    ours = weights((30, 20), (7,))
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    adamw = Adamw(ours, CONFIG)
    plain = torch.optim.AdamW(
        theirs, lr=CONFIG.learning_rate, betas=(CONFIG.beta1, CONFIG.beta2), weight_decay=0.1, foreach=False
    )
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = 0.3 * a.grad
        adamw.step(CONFIG.learning_rate, 0.3)
        plain.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(3, 1000), (5, 7), (1, 256), (2, 257), (4, 6, 50)])
def test_a_code_is_off_by_less_than_one(signed, shape):
    values = torch.randn(shape) * torch.logspace(-6, 0, shape[-1])
    values = values if signed else values.square()
    packed = Packed.zeros(values, signed=signed)
    rows = slice(0, shape[0])
    packed.put(rows, eightbit.blocks(values), eightbit.offsets(values, rows, 0, 3))
    found, block = packed.wide(), eightbit.blocks(values)
    power, largest = (0.5, 127) if signed else (0.25, 255)
    error = (found.abs() ** power - block.abs() ** power).abs() / packed.scale.clamp_min(1e-30) ** power
    assert float(error.max()) < 1 / largest + 1e-5
    assert bool((found * block >= 0).all())
    assert torch.equal(packed.scale, block.abs().amax(-1, keepdim=True))


def test_rounding_averages_out_over_steps():
    values = torch.rand(4, 200)
    rows, packed, total = slice(0, 4), Packed.zeros(values, signed=True), torch.zeros(4, 1, 200)
    for step in range(400):
        packed.put(rows, eightbit.blocks(values), eightbit.offsets(values, rows, 0, step))
        total += packed.wide().sqrt()
    once = 1 / 127 * packed.scale.sqrt()
    assert float(((total / 400 - values[:, None].sqrt()).abs() / once).max()) < 0.02


def test_moments_far_below_their_block_still_decay():
    """Rounded to the nearest code they would stay more than a hundred times too large."""
    tensor, config = torch.ones(1, 4096).requires_grad_(), OptimiserConfig(beta2=0.999)
    adamw = eight([tensor], config)
    for step in range(500):
        tensor.grad = torch.full((1, 4096), 0.1 if step == 0 else 0.0)
        tensor.grad[:, ::256] = 1.0
        adamw.step(1e-9, 1.0)
    found = adamw.packed[0]["exp_avg_sq"].wide()[..., 1:]
    exact = 0.001 * 0.01 * 0.999**499
    assert float((found**0.25).mean()) == pytest.approx(exact**0.25, rel=0.05)


def test_8bit_moments_learn_like_float32_ones():
    inputs, wanted = torch.randn(512, 64), torch.randn(64, 96)
    losses = {}
    for name, build in (("float32", lambda t: Adamw(t, CONFIG)), ("8bit", eight)):
        torch.manual_seed(0)
        (weight,) = weights((64, 96))
        adamw, noise = build([weight]), torch.Generator().manual_seed(1)
        for _ in range(400):
            chosen = torch.randint(512, (32,), generator=noise)
            loss = (inputs[chosen] @ (weight - wanted)).square().mean()
            weight.grad = torch.autograd.grad(loss, weight)[0]
            adamw.step(1e-2, 1.0)
        losses[name] = float((weight.detach() - wanted).square().mean())
    assert losses["float32"] < 0.5
    assert losses["8bit"] == pytest.approx(losses["float32"], rel=0.02)


def bytes_of(state: object) -> int:
    if isinstance(state, Tensor):
        return state.nbytes
    return sum(bytes_of(value) for value in state.values()) if isinstance(state, dict) else 0


@pytest.mark.parametrize(("precision", "low", "high"), [("float32", 8, 8.01), ("8bit", 2, 2.05)])
def test_what_the_moments_take(precision, low, high):
    tensors = weights((64, 768), (3072, 16))
    adamw = eight(tensors) if precision == "8bit" else Adamw(tensors, CONFIG)
    for tensor in tensors:
        tensor.grad = torch.randn_like(tensor)
    adamw.step(1e-3, 1.0)
    taken = bytes_of(adamw.state([64, 3072], lambda tensor, _: tensor)[0]) / tensors[0].numel()
    assert low <= taken < high


def test_a_state_goes_over_into_the_other_precision():
    tensors = weights((40, 300), (50,))
    for tensor in tensors:
        tensor.grad = torch.randn_like(tensor)
    first = Adamw(tensors, CONFIG)
    first.step(1e-3, 1.0)
    saved = first.state([40, 50], lambda tensor, _: tensor.clone())
    packed = eight(tensors)
    packed.load(saved, torch.clone)
    again = Adamw(tensors, CONFIG)
    again.load(packed.state([40, 50], lambda tensor, _: tensor.clone()), torch.clone)
    found = again.state([40, 50], lambda tensor, _: tensor.clone())
    assert float(found[0]["step"]) == 1
    assert torch.equal(found[1]["exp_avg"], saved[1]["exp_avg"])  # small: float32 in both
    assert torch.equal(found[0]["exp_avg"], pack(saved[0]["exp_avg"], signed=True).wide().flatten(1)[:, :300])


@pytest.mark.parametrize("model", ["float32", "bfloat16"])
def test_a_run_with_8bit_moments_resumes_bit_for_bit(tmp_path, model):
    changes = {
        "optimiser": {"state_precision": "8bit", "steps": 4}, "checkpoint": {"every_steps": 2},
        "model": {"dtype": model}, "evaluation": {"every_steps": 0},
    }  # fmt: skip
    whole, parted = make(tmp_path / "whole", small(**changes)), make(tmp_path / "parted", small(**changes))
    train(whole)
    train(parted)
    shutil.rmtree(parted.checkpoint(4))
    train(parted, attempt=2)
    assert events(parted, "started")[-1]["resume_step"] == 2
    ours, theirs = (torch.load(folder.checkpoint(4) / "trainer_state/tensors.pt") for folder in (whole, parted))
    assert same(ours["optimiser"], theirs["optimiser"])
    assert metrics(whole)[4] == metrics(parted)[4]


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)  # type: ignore[arg-type]
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)  # type: ignore[attr-defined, index]
    return all(same(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, list) else a == b  # type: ignore[call-overload]
