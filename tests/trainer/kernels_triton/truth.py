"""What rows of logits should give, in float64 and by the definitions; and rows that have caught kernels before."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.kernels import rows_triton
from trainer.kernels.wants import REMOVED, Shape, Wants, row_scalars

STRAIGHT, PLAIN = Shape(), Wants()

EPS = torch.finfo(torch.float32).eps


def figures_of(
    product: Tensor, target: Tensor, inverse: Tensor, *, bias: Tensor | None, shape: Shape, wants: Wants
) -> dict[str, Tensor]:
    """Return the figures of hidden @ weight.T [n, V] by name, differentiable where they should be; float64."""
    z = (product if bias is None else product + bias) * shape.scale
    if shape.softcap is not None:
        z = shape.softcap * torch.tanh(z / shape.softcap)
    s = z * inverse[:, None]
    logp, p, clean = softmax_of(s)
    rows = torch.arange(len(s), device=s.device)
    top = s.detach().amax(-1)
    found = {"logprob": logp[rows, target], "entropy": -(p * clean).sum(-1)}
    found |= {"lse": s.logsumexp(-1), "max_logit": top, "log_sum": s.logsumexp(-1) - top}
    if wants.moments:
        gain = (p * (clean + found["entropy"][:, None])).square().sum(-1)
        found |= {"sum_p2": (p * p).sum(-1), "sum_p2_logp": (p * p * clean).sum(-1), "entropy_gain": gain}
    if wants.second is not None:
        logp2, p2, clean2 = softmax_of(z / wants.second)
        found |= {"logprob2": logp2[rows, target], "entropy2": -(p2 * clean2).sum(-1)}
        found |= {"log_sum2": (z / wants.second).logsumexp(-1) - (z / wants.second).detach().amax(-1)}
    if wants.min_p is not None:
        kept = (s - top[:, None]).detach() >= wants.kept_cut
        stays, lse = kept[rows, target], s.logsumexp(-1)
        inside = torch.where(kept, s, -torch.inf).logsumexp(-1)
        left = torch.where(stays, s[rows, target], REMOVED) - inside
        mass = (inside - lse).exp()
        found |= {"kept_mass": mass, "kept_logprob": left, "target_kept": stays.double()}
    return found


def softmax_of(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p, p and log p with 0 where p is 0, without NaN in their gradients."""
    logp = torch.log_softmax(s, -1)
    banned = logp == -torch.inf
    clean = logp.masked_fill(banned, 0)
    return logp, clean.exp().masked_fill(banned, 0), clean


def gradient_of(product: Tensor, upstream: dict[str, Tensor], **options) -> Tensor:
    """Return d sum(upstream * figure) / d product."""
    product = product.clone().requires_grad_()
    found = figures_of(product, **options)
    (gradient,) = torch.autograd.grad(sum((found[name] * g).sum() for name, g in upstream.items()), product)
    return gradient


def awkward_rows(vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return float32 logits [14, V], targets and 1 / temperature: offsets, peaks, ties, NaN, hot and cold rows.

    Offsets have power-of-two temperatures and multiples of 1/64, so that float32 holds the logits exactly.
    """
    x = (torch.randn(14, vocabulary) * 4 * 64).round() / 64
    for row, offset in enumerate((0.0, 30.0, -30.0, -120.0, 1e4, -1e4)):
        x[row] += offset
    x[6, -1] += 60  # nearly one-hot, at the end
    x[7] = -3.25  # uniform
    x[8, 0] = x[8, vocabulary // 2] = 25.0  # two equal maxima
    x[9, vocabulary // 3] = torch.nan
    target = torch.randint(vocabulary, (14,))
    target[6], target[8], target[10], target[11] = vocabulary - 1, 0, 0, vocabulary - 1
    inverse = torch.ones(14)
    inverse[10:14] = torch.tensor([20.0, 0.05, 1.3, 0.7])  # temperatures 0.05 and 20 among them
    return x, target, inverse


def off_by(found: Tensor, truth: Tensor, largest: Tensor) -> Tensor:
    """Return errors as shares of what float32 rounding of the tempered logits and of the result allows."""
    allowed = 1e-6 * (1 + truth.abs()) + 4 * EPS * largest
    return torch.where(found.double() == truth, 0, (found.double() - truth).abs() / allowed)


def check_pair(product, target, inverse, *, bias=None, shape=STRAIGHT, wants=PLAIN) -> None:
    """Assert that Triton's figures and gradient of the rows [n, V] agree with float64, on any device."""
    figures, argmax = rows_triton.row_statistics(product, target, inverse, bias=bias, shape=shape, wants=wants)
    wide = None if bias is None else bias.double()
    options = {"target": target, "inverse": inverse.double(), "bias": wide, "shape": shape, "wants": wants}
    truth = figures_of(product.double(), **options)
    broken = truth["logprob"].isnan()
    scale = truth["max_logit"].abs().where(~broken, 0)
    for name, found in zip(wants.figures, figures, strict=True):
        if name != "target_kept":
            assert torch.equal(found.isnan(), broken), f"{name}: NaN left its row"
        worst = off_by(found, truth[name], scale).where(~broken, 0)
        assert worst.max() <= 1, f"{name}: {worst.tolist()}"
    assert ((argmax >= 0) & (argmax < product.shape[1])).all()
    reached = figures_of(product.double(), **options | {"target": argmax})["logprob"]
    best = truth["max_logit"] - truth["lse"]
    assert (off_by(reached, best, scale).where(~broken, 0) <= 1).all(), "argmax is not the likeliest token"

    upstream = {name: torch.randn_like(inverse) for name in wants.differentiable}
    scalars = row_scalars(dict(zip(wants.figures, figures, strict=True)), upstream, inverse, wants)
    expected = gradient_of(product.double(), {name: g.double() for name, g in upstream.items()}, **options)
    work = product.clone()
    found = rows_triton.logits_gradient_(
        work, target, inverse, scalars, first=0, bias=bias, shape=shape, wants=wants, dtype=torch.float32
    )
    assert found.data_ptr() == work.data_ptr()
    assert found[broken].isnan().all()
    size = expected.norm(dim=1) + sum(g.abs() for g in upstream.values()) * inverse
    error = (found.double() - expected).norm(dim=1) / size
    assert error[~broken].max() < 2e-6 + 4e-7 * scale[~broken].max().clamp(max=100), error.tolist()
