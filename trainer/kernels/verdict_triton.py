"""Whether the fused forward pass is used: measured once for a shape, on the machine that will run it.

The question is asked with the caller's weight and random states, always as many, so the answer depends on the shape of
the head and not on the call: two calls of one process never differ by it. It is kept in a file with the versions of
everything that decides it, so two processes rarely do; ISENTROPE_FUSED_FORWARD (off, twin, wide, narrow) settles it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
from torch import Tensor

from trainer.kernels import rows_triton
from trainer.kernels.chunks import chunk_bytes_of
from trainer.kernels.fused_triton import CAPABILITY, TILINGS, fits, fused_statistics, tilings_for
from trainer.kernels.task import Room, Task
from trainer.kernels.wants import Shape, Wants

VARIABLE = "ISENTROPE_FUSED_FORWARD"
PROBE_ROWS = 4096
ROUNDS = 7
TOLERANCE = 1e-3  # of the largest figure: between two orders of adding the same products in float32
EDITION = 1  # of the kernel: raise it when the kernel changes, and old verdicts are asked again

log = logging.getLogger(__name__)
_known: dict[str, str | None] = {}


def forward(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    inverse: Tensor,
    *,
    bias: Tensor | None,
    shape: Shape,
    wants: Wants,
) -> tuple[Tensor, Tensor] | None:
    """Return figures [F, N] and argmax [N] of a call without gradient, or None where stored logits serve it better."""
    if not hidden.is_cuda or torch.cuda.get_device_capability(hidden.device) < CAPABILITY:
        return None
    name = preferred(hidden, weight, bias, shape, wants) if fits(hidden, weight, wants) else None
    if name is None:
        return None
    return fused_statistics(hidden, weight, target, inverse, bias=bias, shape=shape, wants=wants, tiling=TILINGS[name])


def preferred(hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, wants: Wants) -> str | None:
    """Return the tiling that is at least as fast as stored logits for such heads, or None. Raises ValueError."""
    said = os.environ.get(VARIABLE, "auto")
    if said in TILINGS:
        return said
    if said not in ("auto", "off"):
        raise ValueError(f"{VARIABLE} is {said!r}; choose auto, off, {', '.join(TILINGS)}")
    if said == "off" or torch.cuda.is_current_stream_capturing():
        return None
    name = question(weight, bias, shape, wants)
    if name not in _known:
        answers = kept()
        if name not in answers:
            answers[name] = measured(weight, bias, shape, wants)
            keep(answers)
        _known[name] = answers[name]["choice"]
        log.info("fused forward for %s: %s", name, answers[name])
    return _known[name]


def question(weight: Tensor, bias: Tensor | None, shape: Shape, wants: Wants) -> str:
    """Return everything that decides the answer, as one line."""
    vocabulary, width = weight.shape
    what = [
        torch.cuda.get_device_name(weight.device), f"torch {torch.__version__}", f"triton {triton.__version__}",
        f"edition {EDITION}", f"V {vocabulary}", f"H {width}", str(weight.dtype),
        *(["bias"] if bias is not None else []), *(["softcap"] if shape.softcap is not None else []),
        *(["moments"] if wants.moments else []), *(["second temperature"] if wants.second is not None else []),
    ]  # fmt: skip
    return ", ".join(what)


@torch.no_grad()
def measured(weight: Tensor, bias: Tensor | None, shape: Shape, wants: Wants) -> dict[str, Any]:
    """Return the choice and the milliseconds of each way, medians of interleaved rounds."""
    from trainer.kernels.chunked import sweep  # the driver knows the rooms, and a room asks here

    generator = torch.Generator(weight.device).manual_seed(0)
    hidden = torch.randn(PROBE_ROWS, weight.shape[1], generator=generator, device=weight.device).to(weight.dtype)
    target = torch.randint(len(weight), (PROBE_ROWS,), generator=generator, device=weight.device)
    inverse = torch.ones(PROBE_ROWS, device=weight.device)
    room = Room("triton", rows_triton.row_statistics, rows_triton.logits_gradient_)
    task = Task(room, shape, wants, chunk_bytes_of(weight.device))
    operands, options = (hidden, weight, target, inverse), dict[str, Any](bias=bias, shape=shape, wants=wants)
    ways: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {"stored": partial(sweep, *operands, bias, task, None)}
    for name in tilings_for(wants):
        ways[name] = partial(fused_statistics, *operands, **options, tiling=TILINGS[name])
    truth, problems = ways["stored"]()[0], {}
    for name in tilings_for(wants):
        if problem := wrong(ways[name], truth):
            problems[name] = problem
            log.warning("fused forward %s is not used on %s: %s", name, weight.device, problem)
            del ways[name]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(milliseconds(way))
    medians = {name: round(median(found), 3) for name, found in times.items()}
    best = min(medians, key=lambda name: (medians[name], name == "stored"))
    return {"choice": None if best == "stored" else best, "milliseconds": medians, "problems": problems}


def wrong(way: Callable[[], tuple[Tensor, Tensor]], truth: Tensor) -> str | None:
    """Return what is wrong with a way of computing the figures, or None."""
    try:
        found = way()[0]
    except Exception as error:  # a compiler of another version may fail in any way; stored logits are always there
        return f"{type(error).__name__}: {error}"
    scale = truth.abs().amax(1, keepdim=True).clamp(min=1e-6)
    worst = float(((found - truth).abs() / scale).nan_to_num(nan=torch.inf).max())
    return None if worst < TOLERANCE else f"it differs from stored logits by {worst:.1e}"


def milliseconds(way: Callable[[], object]) -> float:
    """Return how long the GPU takes for one call."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    way()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def verdict_file() -> Path:
    """Return where answers are kept; the file may be deleted."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isentrope" / "fused_forward.json"


def kept() -> dict[str, dict[str, Any]]:
    """Return the answers of earlier processes; none where the file is missing or damaged."""
    try:
        return json.loads(verdict_file().read_text())
    except (OSError, ValueError):
        return {}


def keep(answers: dict[str, dict[str, Any]]) -> None:
    """Write the answers for later processes; where the folder is read-only, each of them asks again."""
    try:
        verdict_file().parent.mkdir(parents=True, exist_ok=True)
        whole = verdict_file().with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps(answers, indent=1))
        whole.replace(verdict_file())
    except OSError as error:
        log.debug("the verdict is not kept: %s", error)
