"""TRL's own Python environment: the same torch and transformers as ours, and TRL from PyPI."""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

SAME = ("torch", "transformers", "accelerate")  # versions are taken from this environment


def make(folder: Path) -> Path:
    """Make the environment where it is missing and return its Python."""
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        same = [f"{name}=={version(name).partition('+')[0]}" for name in SAME]
        subprocess.run([*pip, same[0]], check=True)
        subprocess.run([*pip, *same, "trl", "datasets"], check=True)
        # Without its dependencies: they would replace the CPU's torch. Triton is enough for it to be imported.
        subprocess.run([*pip, "--no-deps", "liger-kernel", "triton"], check=False)
    return python


def check(python: Path) -> str:
    """Return TRL's version; exit with a sentence where this Python has none."""
    code = "from importlib.metadata import version; print(version('trl'))"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{python} has no TRL; give another --trl-python, or --make-venv FOLDER to make one")
    return found.stdout.strip()
