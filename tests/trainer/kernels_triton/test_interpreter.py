"""The Triton kernels on a CPU: Triton's interpreter has to be chosen before the import, so in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

triton = pytest.importorskip("triton", reason="Triton has no wheel for this platform")
if Version(triton.__version__) < Version("3.7"):
    pytest.skip("Triton's interpreter works with current NumPy from 3.7 on", allow_module_level=True)
HERE = Path(__file__).parent


@pytest.mark.timeout(900)  # it takes half a minute of one core, and a busy machine stretches that
def test_the_kernels_agree_with_float64_in_the_interpreter() -> None:
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"),
        *("-o", "addopts=--import-mode=importlib", f"--confcutdir={HERE}", f"--rootdir={HERE.parents[2]}"),
        *sorted(str(path) for path in (HERE / "interpreted").glob("*.py")),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        command, cwd=HERE.parents[2], env=environment, capture_output=True, text=True, timeout=880, check=False
    )
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
