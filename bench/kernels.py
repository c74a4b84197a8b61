"""The head's operator beside others: `python bench/kernels.py [--grid quick|cpu|gpu] [--json FILE]`.

Forward and backward of sum(a * logprob + b * entropy) over [N, H] hidden states and a [V, H] head. Times are medians
of calls that take turns. Memory is what a call adds to its operands at its peak, gradients included: on a GPU as the
allocator counts, on a CPU as the kernel counts in a process of its own. Errors are against float64 on the same
operands. TFLOP/s counts the matrix products that a contender makes, and those of the rows it drops not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import _probe as probe  # noqa: E402
import torch  # noqa: E402
from _contenders import Contender, contenders  # noqa: E402
from _operands import GRIDS, LIVE, Shape, read, truth, write  # noqa: E402
from torch import Tensor  # noqa: E402

HEAD = ("", "forward, ms", "all, ms", "TFLOP/s", "peak MB", "logprob, median", "entropy, largest", "dX", "dW")
Clock = Callable[[], float]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SMALL = 64  # rows of the call that warms libraries up before memory is measured


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def call(contender: Contender, tensors: list[Tensor], clock: Clock = time.perf_counter) -> tuple[float, float]:
    """Return seconds of forward, and of forward and backward together; leaves gradients in the operands."""
    tensors[0].grad = tensors[1].grad = None
    wait()
    began = clock()
    loss = contender.run(*tensors)[0]
    wait()
    between = clock()
    loss.backward()
    wait()
    return between - began, clock() - began


def one_product(tensors: list[Tensor], clock: Clock) -> float:
    """Return seconds of the plain hidden @ weight.T, in pieces that stay small."""
    hidden, weight = tensors[0].detach(), tensors[1].detach()
    wait()
    began = clock()
    for rows in hidden.split(512 if not hidden.is_cuda else 8192):
        rows @ weight.T
    wait()
    return clock() - began


def errors(contender: Contender, tensors: list[Tensor], true: dict[str, Tensor]) -> dict[str, float]:
    """Return how far a contender is from the truth: nats, and relative norms of the gradients."""
    tensors[0].grad = tensors[1].grad = None
    loss, logprob, entropy = contender.run(*tensors)
    loss.backward()
    found = {}
    if logprob is not None:
        found["logprob"] = float((logprob.detach().double() - true["logprob"]).abs().median())
    if entropy is not None:
        found["entropy"] = float((entropy.detach().double() - true["entropy"]).abs().max())
    if contender.weighted:
        for name, tensor in (("dX", tensors[0]), ("dW", tensors[1])):
            assert tensor.grad is not None
            found[name] = float((tensor.grad.double() - true[name]).norm() / true[name].norm())
    return found


def grown(contender: Contender, tensors: list[Tensor]) -> int:
    """Return the bytes that forward and backward add to the operands at their peak."""
    if tensors[0].is_cuda:
        tensors[0].grad = tensors[1].grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(contender, tensors)
        return torch.cuda.max_memory_allocated() - before
    small = [tensor.detach()[:SMALL].clone().requires_grad_(place < 2) for place, tensor in enumerate(tensors)]
    small[2] %= SMALL
    call(contender, small)  # what libraries set up once is not the operator's
    del small
    probe.trim()
    probe.forget_peak()
    before = probe.resident()
    call(contender, tensors)
    return probe.peak() - before


def grown_alone(name: str, folder: Path, threads: int) -> int:
    """Return `grown` from a process of its own."""
    child = [sys.executable, __file__, "--child", name, str(folder), "--threads", str(threads)]
    ended = subprocess.run(child, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{name}: {ended.stderr}")
    return int(ended.stdout.splitlines()[-1])


def measure(shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Return everything about one shape."""
    print(shape, file=sys.stderr, flush=True)
    entrants, _ = contenders()
    entrants = {name: one for name, one in entrants.items() if any(part in name for part in options.only)}
    rows: dict[str, dict[str, Any]] = {name: {} for name in entrants}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in entrants}
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        write(shape, getattr(torch, options.dtype), folder)
        tensors = {live: read(folder, live, options.device) for live in LIVE}
        for live in LIVE:
            true = truth(tensors[live])
            for name, one in entrants.items():
                if one.live == live:
                    rows[name].update(_refused(errors, one, tensors[live], true))
            del true
        products = []
        for _ in range(options.repeats):
            products.append(one_product(tensors[1.0], CLOCKS[options.clock]))
            for name, one in entrants.items():
                if "refused" not in rows[name]:
                    times[name].append(call(one, tensors[one.live], CLOCKS[options.clock]))
        for name, one in entrants.items():
            if "refused" in rows[name]:
                continue
            forward, whole = (statistics.median(column) for column in zip(*times[name], strict=True))
            on_gpu = options.device == "cuda"
            peak = grown(one, tensors[one.live]) if on_gpu else grown_alone(name, folder, options.threads)
            rows[name] |= {"forward": forward, "all": whole, "peak": peak, "times": times[name]}
            rows[name]["tflops"] = one.units * shape.product / whole / 1e12
    return {"shape": str(shape), "product": statistics.median(products), "flop": shape.product, "rows": rows}


def _refused(measure: Any, *arguments: Any) -> dict[str, Any]:
    """Return what a measurement finds, or that a contender does not fit into this machine or does not run."""
    try:
        return measure(*arguments)
    except (RuntimeError, ImportError, torch.OutOfMemoryError) as error:
        return {"refused": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}


def table(found: dict[str, Any]) -> str:
    """Return one shape as a table."""
    rate = found["flop"] / found["product"] / 1e12
    lines = [
        f"**{found['shape']}**; one matrix product takes {1000 * found['product']:.0f} ms, {rate:.3f} TFLOP/s\n",
        "| " + " | ".join(HEAD) + " |",
        "|---|" + "---:|" * (len(HEAD) - 1),
    ]
    return "\n".join([*lines, *(_line(name, row) for name, row in found["rows"].items())])


def _line(name: str, row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"| {name} | does not run here: {row['refused']} |" + " |" * (len(HEAD) - 2)
    cells = [
        f"{1000 * row['forward']:.0f}",
        f"{1000 * row['all']:.0f}",
        f"{row['tflops']:.3f}",
        f"{row['peak'] / 1e6:.0f}",
    ]
    cells += [f"{row[key]:.1e}" if key in row else "–" for key in ("logprob", "entropy", "dX", "dW")]
    return f"| {name} | " + " | ".join(cells) + " |"


def machine(options: argparse.Namespace) -> str:
    """Return one line: date, commit, device, threads, load, versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    installed = []
    for name in ("torch", "triton", "liger-kernel"):
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    device = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    )
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit.strip()}, {device}, {options.threads} threads, "
        f"load {os.getloadavg()[0]:.1f}, {options.dtype}, {options.repeats} calls each by the {options.clock} clock, "
        f"Python {platform.python_version()}, {', '.join(installed)}"
    )


def child(name: str, folder: Path) -> None:
    """Print `grown` of one contender, in bytes."""
    one = contenders()[0][name]
    print(grown(one, read(folder, one.live, "cpu")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--grid", choices=list(GRIDS), default="gpu" if on_gpu else "quick")
    parser.add_argument("--repeats", type=int, default=3, help="Calls of each, taking turns.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu where other work shares the cores.")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--only", nargs="+", default=[""], help="Only contenders whose name contains one of these.")
    parser.add_argument("--shape", default="", help="Only shapes whose name contains this, as N=2,048.")
    parser.add_argument("--json", type=Path, help="Also write all figures here.")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = "cuda" if on_gpu and not options.child else "cpu"
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.child[0], Path(options.child[1]))
        return
    missing = contenders()[1]
    whole: dict[str, Any] = {"machine": machine(options), "missing": missing, "results": []}
    print(whole["machine"], *(f"Left out: {name}, because {why}." for name, why in missing.items()), sep="\n\n")
    for shape in (shape for shape in GRIDS[options.grid] if options.shape in str(shape)):
        whole["results"].append(measure(shape, options))
        print("\n" + table(whole["results"][-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(whole, indent=1), "utf-8")


if __name__ == "__main__":
    main()
