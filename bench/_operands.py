"""Operands of the head's operator for bench/kernels.py, and the true answers in float64."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
SMOLLM2 = "builtin:smollm2-135m-instruct"
WINDOW = 1024  # tokens that SmolLM2 reads at once
ROWS_AT_ONCE = 64  # of the float64 truth
LIVE = (1.0, 0.2)  # shares of rows with a gradient


@dataclass(frozen=True)
class Shape:
    """N rows, width H, vocabulary V; `trained` takes hidden states, targets and head of SmolLM2 reading docs/."""

    n: int
    h: int
    v: int
    trained: bool = False

    @property
    def product(self) -> float:
        """FLOP of one matrix product of the whole [N, V]."""
        return 2.0 * self.n * self.h * self.v

    def __str__(self) -> str:
        return f"N={self.n:,}, H={self.h:,}, V={self.v:,}, " + ("trained" if self.trained else "random")


GRIDS = {
    "quick": [Shape(256, 576, 49152, trained=True), Shape(128, 896, 151936)],
    "cpu": [
        Shape(2048, 576, 49152),
        Shape(2048, 576, 49152, trained=True),
        Shape(512, 896, 151936),
        Shape(1136, 256, 32768),
    ],
    "gpu": [
        Shape(8192, 576, 49152, trained=True),
        *(Shape(n, h, 151936) for n in (8192, 32768) for h in (896, 2048, 4096)),
        *(Shape(n, 4096, 128256) for n in (8192, 32768)),
    ],
}


def write(shape: Shape, dtype: torch.dtype, folder: Path) -> None:
    """Write hidden, weight, target, a, b for each share of live rows; the same numbers for the same shape."""
    dice = torch.Generator().manual_seed(shape.n + shape.v)
    hidden, weight, target = _trained(shape) if shape.trained else _drawn(shape, dice)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    a, b = torch.randn(shape.n, generator=dice), 0.01 * torch.randn(shape.n, generator=dice)
    order = torch.rand(shape.n, generator=dice).argsort().argsort()
    for live in LIVE:
        rows = order < round(live * shape.n)
        torch.save([hidden, weight, target, a * rows, b * rows], folder / f"operands-{live}.pt")


def read(folder: Path, live: float, device: str) -> list[Tensor]:
    """Return operands; hidden and weight want gradients."""
    tensors = torch.load(folder / f"operands-{live}.pt", map_location=device, weights_only=True)
    return [tensor.requires_grad_(place < 2) for place, tensor in enumerate(tensors)]


def truth(tensors: list[Tensor]) -> dict[str, Tensor]:
    """Return logprob, entropy, dX and dW in float64 on the same operands, on their device."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in tensors[:2])
    logprob, entropy = [], []
    for start in range(0, len(hidden), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        logp = torch.log_softmax(hidden[rows] @ weight.T, -1)
        logprob.append(logp.gather(1, tensors[2][rows, None]).squeeze(1))
        entropy.append(-(logp.exp() * logp).sum(-1))
        (tensors[3][rows].double() * logprob[-1] + tensors[4][rows].double() * entropy[-1]).sum().backward()
        logprob[-1], entropy[-1] = logprob[-1].detach(), entropy[-1].detach()
    return {"logprob": torch.cat(logprob), "entropy": torch.cat(entropy), "dX": hidden.grad, "dW": weight.grad}


def _drawn(shape: Shape, dice: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return random operands; logits have a standard deviation of 2."""
    hidden = torch.randn(shape.n, shape.h, generator=dice)
    weight = torch.randn(shape.v, shape.h, generator=dice) * (2 / shape.h**0.5)
    return hidden, weight, torch.randint(shape.v, (shape.n,), generator=dice)


def _trained(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Return what SmolLM2's head gets and has while it reads our documentation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from trainer.models import resolve

    disable_progress_bar()
    path = resolve(SMOLLM2).path
    text = "\n".join(file.read_text("utf-8") for file in sorted((ROOT / "docs").glob("*.md")))
    ids = AutoTokenizer.from_pretrained(path)(text)["input_ids"]
    if len(ids) <= shape.n:
        sys.exit(f"docs/ has {len(ids)} tokens, too few for {shape.n} rows")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        windows = torch.tensor(ids[: shape.n]).split(WINDOW)
        hidden = torch.cat([model.base_model(input_ids=window[None], use_cache=False)[0][0] for window in windows])
    return hidden, model.get_output_embeddings().weight.detach(), torch.tensor(ids[1 : shape.n + 1])
