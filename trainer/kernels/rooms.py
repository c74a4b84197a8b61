"""Which room computes a call: an explicit, logged choice that an argument or the environment overrides."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from trainer.kernels import rows
from trainer.kernels.task import Room
from trainer.kernels.wants import Shape, Wants, row_scalars

RoomName = Literal["auto", "reference", "chunked", "triton"]
ROOMS = ("reference", "chunked", "triton")
VARIABLE = "ISENTROPE_KERNEL_ROOM"
TOLERANCE = 1e-4  # between Triton's figures and torch's, float32, before Triton is trusted

log = logging.getLogger(__name__)


def choose_room(device: torch.device | str, room: str = "auto") -> tuple[str, str]:
    """Return the name of the room that computes on `device`, and why.

    `room` decides, then the environment variable ISENTROPE_KERNEL_ROOM, then: triton on CUDA where it imports and
    agrees with torch on a small example, chunked otherwise. Raises ValueError where the name is unknown or Triton was
    asked for and cannot run.
    """
    asked, source = (room, "asked for") if room != "auto" else (os.environ.get(VARIABLE, "auto"), f"{VARIABLE} says so")
    if asked not in ("auto", *ROOMS):
        named = "room" if room != "auto" else VARIABLE
        raise ValueError(f"{named} is {asked!r}, and there is no such room; choose auto or one of {', '.join(ROOMS)}")
    device = torch.device(device)
    if asked == "auto":
        return _automatic(device)
    if asked == "triton" and (problem := triton_problem(device)):
        raise ValueError(f"room triton cannot run here: {problem}; choose room='chunked'")
    return asked, source


@cache
def _automatic(device: torch.device) -> tuple[str, str]:
    if device.type != "cuda":
        name, why = "chunked", f"Triton has no kernels for {device.type}"
    elif problem := triton_problem(device) or triton_disagrees(device):
        name, why = "chunked", problem
    else:
        name, why = "triton", "it imports and agrees with torch on this GPU"
    level = logging.WARNING if device.type == "cuda" and name == "chunked" else logging.INFO
    log.log(level, "room %s on %s: %s", name, device, why)
    return name, why


@cache
def load_room(name: str) -> Room:
    """Return the row epilogues of a room that has passed `choose_room`."""
    if name == "triton":
        from trainer.kernels import rows_triton, verdict_triton

        return Room(name, rows_triton.row_statistics, rows_triton.logits_gradient_, verdict_triton.forward)
    return Room(name, rows.row_statistics, rows.logits_gradient_)


def triton_problem(device: torch.device) -> str | None:
    """Return why the triton room cannot compute on `device`, or None where it can."""
    try:
        from trainer.kernels import rows_triton
    except ImportError as error:
        return f"Triton does not import ({error}); install it with the CUDA build of torch"
    if device.type == "cuda" or getattr(rows_triton, "INTERPRETED", False):
        return None
    return f"the operands are on {device.type}, and Triton needs CUDA"


def triton_disagrees(device: torch.device) -> str | None:
    """Return how Triton's epilogues differ from torch's on small random examples, or None where they agree.

    Two of them: what every step runs, and everything at once. Versions of Triton have compiled correct programs to
    wrong ones, so the programs are asked rather than the version.
    """
    plain = (Wants(), Shape(), None, torch.float32)
    full = (
        Wants(moments=True, second=0.8, min_p=0.01),
        Shape(0.5, 20.0),
        torch.linspace(-1, 1, 1100, device=device),
        torch.bfloat16,
    )
    for wants, shape, bias, dtype in (plain, full):
        try:
            ours, torchs = (
                _example(load_room(name), device, bias, shape, wants, dtype) for name in ("triton", "chunked")
            )
        except Exception as error:  # a compiler of another version may fail in any way; torch is always there
            return f"Triton failed on a small example ({type(error).__name__}: {error})"
        for name, one, other in zip(("figures", "gradient"), ours, torchs, strict=True):
            limit = TOLERANCE if name == "figures" or dtype == torch.float32 else torch.finfo(dtype).eps
            worst = float(((one - other).abs() / (1 + other.abs())).nan_to_num(nan=torch.inf).max())
            if worst > limit:
                return f"Triton's {name} differ from torch's by {worst:.1e} on a small example"
    return None


def _example(
    room: Room, device: torch.device, bias: Tensor | None, shape: Shape, wants: Wants, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return figures and gradient of fixed random logits."""
    generator = torch.Generator("cpu").manual_seed(0)
    logits = (torch.randn(5, 1100, generator=generator, device="cpu") * 4 - 20).to(device)
    target, inverse = torch.arange(0, 1100, 220, device=device), torch.full((5,), 1.25, device=device)
    figures, _ = room.row_statistics(logits, target, inverse, bias=bias, shape=shape, wants=wants)
    named = dict(zip(wants.figures, figures.unbind(0), strict=True))
    upstream = {name: inverse * (-1) ** place for place, name in enumerate(wants.differentiable)}
    scalars = row_scalars(named, upstream, inverse, wants)
    gradient = room.logits_gradient_(
        logits, target, inverse, scalars, first=0, bias=bias, shape=shape, wants=wants, dtype=dtype
    )
    return figures, gradient.float()
