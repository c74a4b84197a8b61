"""The rarer statistics against their definitions in float64, and their gradients."""

from __future__ import annotations

import random

import pytest
import torch

from tests.trainer.objectives import golden
from trainer.kernels import EXTRAS, gradient_features, linear_extras, squared_hellinger

OPTIONS = {"second_temperature": 0.8, "min_p": 0.02, "top_p": 0.8}


def operands(seed: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden [N, H], weight [V, H], target [N], bias [V] in float64."""
    seed = random.randrange(2**31) if seed is None else seed
    print(f"seed {seed}")
    dice = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, 5, generator=dice, dtype=torch.float64) for n in (9, 13))
    return hidden, weight, torch.randint(13, (9,), generator=dice), torch.randn(13, generator=dice).double()


def found(names: list[str], temperature: float = 1.0, chunk_bytes: int = 1 << 20, **options) -> tuple:
    hidden, weight, target, bias = operands()
    values = linear_extras(
        hidden, weight, target, names=names, options=OPTIONS | options, temperature=temperature, bias=bias,
        chunk_bytes=chunk_bytes,
    )  # fmt: skip
    return values, hidden @ weight.T + bias, target


def test_recorded_definitions() -> None:
    """Log-probs at other temperatures, logit moments and min-p mass of the recording, through an identity head."""
    case = golden.load("token_stats__derived")
    logits = torch.tensor(case.inputs["logits"], dtype=torch.float64).flatten(0, 1)
    target = torch.tensor(case.inputs["actions"]).flatten()
    eye = torch.eye(logits.shape[1], dtype=torch.float64)

    def extras(**options: float) -> dict[str, torch.Tensor]:
        return linear_extras(
            logits, eye, target, names=list(EXTRAS), options=OPTIONS | options, temperature=1.0, chunk_bytes=4096
        )

    for temperature in (0.8, 1.2):
        ours = extras(second_temperature=temperature)
        theirs = torch.tensor(case.outputs[f"log_prob_T{temperature}"]).flatten()
        torch.testing.assert_close(ours["tempered_logprob"], theirs.double(), rtol=0, atol=1e-6)
    pairs = {"max_logprob": "max_log_prob", "logsumexp": "logsumexp"}  # its mean_logit is weighted by p, ours is not
    for name, theirs in pairs.items():
        expected = torch.tensor(case.outputs[theirs], dtype=torch.float64).flatten()
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-9)
    mass = torch.tensor(case.outputs["minp_0.02_kept_mass"], dtype=torch.float64).flatten()
    kept = torch.tensor(case.outputs["minp_0.02_token_kept"]).flatten() > 0
    logprob = torch.tensor(case.outputs["log_prob"], dtype=torch.float64).flatten()
    torch.testing.assert_close(ours["kept_logprob"][kept], (logprob - mass.log())[kept], rtol=0, atol=1e-9)
    assert bool((ours["kept_logprob"][~kept] < -1e3).all())


def test_recorded_nucleus_entropy_and_its_gradient() -> None:
    case = golden.load("siren__regulariser")
    given = torch.tensor(case.inputs["logits"], dtype=torch.float64)
    logits = given.flatten(0, 1).requires_grad_()
    target = torch.zeros(len(logits), dtype=torch.long)
    values = linear_extras(
        logits, torch.eye(given.shape[2], dtype=torch.float64), target,
        names=["nucleus_entropy"], options={"top_p": case.settings["entropy_topp"]}, temperature=1.0, chunk_bytes=4096,
    )["nucleus_entropy"].view(given.shape[:2])  # fmt: skip
    mask = torch.tensor(case.inputs["response_mask"], dtype=torch.float64)
    peaks = torch.tensor(case.outputs["token_mask_second"], dtype=torch.float64) * mask
    assert golden.same("entropy", (values * mask).tolist(), case.outputs["topp_entropy"], 1e-8, mask).error <= 1e-8
    rows = peaks.sum(1) > 0
    level = ((values * peaks).sum(1)[rows] / peaks.sum(1)[rows]).mean()
    loss = case.settings["entropy_coeff"] * (level - case.settings["entropy_anchor"]) ** 2
    loss.backward()
    assert logits.grad is not None
    gradient = logits.grad.view(given.shape)
    assert golden.same("gradient", gradient.tolist(), case.outputs["grad_logits"], 1e-8).error <= 1e-8


def test_top_probabilities_tempered_entropy_and_logits() -> None:
    names = ["top5_prob", "tempered_entropy", "token_logit", "mean_logit"]
    values, logits, target = found(names, temperature=1.3, chunk_bytes=1)
    torch.testing.assert_close(values["mean_logit"], logits.mean(-1) / 1.3)
    p = (logits / 1.3).softmax(-1)
    torch.testing.assert_close(values["top5_prob"], p.sort(-1).values[:, -5:].mean(-1))
    cold = (logits / 0.8).softmax(-1)
    torch.testing.assert_close(values["tempered_entropy"], -(cold * cold.log()).sum(-1))
    torch.testing.assert_close(values["token_logit"], logits.gather(1, target[:, None]).squeeze(1))


@pytest.mark.parametrize("name", ["nucleus_entropy", "tempered_entropy"])
def test_gradients_of_the_differentiable_ones(name: str) -> None:
    hidden, weight, target, bias = operands(7)  # a nucleus may jump under the finite difference at other places

    def function(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return linear_extras(
            hidden, weight, target, names=[name], options=OPTIONS, temperature=1.1, bias=bias, chunk_bytes=900
        )[name]

    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(function, inputs)


def test_gradient_features_are_gradients_of_the_log_probs() -> None:
    hidden, weight, target, bias = operands()
    owner = torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 3])
    states = hidden.clone().requires_grad_()
    logp = ((states @ weight.T + bias) / 1.2).log_softmax(-1).gather(1, target[:, None]).sum()
    (slope,) = torch.autograd.grad(logp, states)
    expected = torch.stack(
        [slope[owner == row].mean(0) if (owner == row).any() else torch.zeros(5) for row in range(4)]
    )
    ours = gradient_features(hidden, weight, target, owner, 4, temperature=1.2, bias=bias, chunk_bytes=900)
    torch.testing.assert_close(ours, expected.double())


def test_squared_hellinger() -> None:
    hidden, weight, _, bias = operands()
    other = torch.randn(13, 5, dtype=torch.float64)
    ours = squared_hellinger((hidden, weight, bias), (hidden, other, None), temperature=0.9, chunk_bytes=900)
    p, q = ((hidden @ weight.T + bias) / 0.9).softmax(-1), (hidden @ other.T / 0.9).softmax(-1)
    torch.testing.assert_close(ours, 1 - (p * q).sqrt().sum(-1))
    same = squared_hellinger((hidden, weight, bias), (hidden, weight, bias), temperature=1.0, chunk_bytes=900)
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-12)


def test_no_rows_give_no_numbers() -> None:
    hidden, weight, target, _ = operands()
    values = linear_extras(
        hidden[:0], weight, target[:0], names=["top5_prob"], options={}, temperature=1.0, chunk_bytes=1
    )
    assert values["top5_prob"].shape == (0,)
