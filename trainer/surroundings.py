"""What a run depends on besides its config's meaning: seeds, threads' kernels, versions, the size of a forward pass."""

from __future__ import annotations

import hashlib
import platform
import random
from importlib import metadata

import numpy as np
import torch

from trainer.budgets import CPU_MICROBATCH_TOKENS
from trainer.config import RunConfig


def microbatch_tokens(config: RunConfig, device: torch.device) -> int:
    """Return the token budget of one forward pass: on a CPU, small enough for its caches (1.8 times as fast)."""
    wanted = config.optimiser.tokens_per_microbatch
    return min(wanted, CPU_MICROBATCH_TOKENS) if device.type == "cpu" else wanted


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch, and make the CPU's kernels repeatable."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # Not torch.use_deterministic_algorithms: the same switch, but it imports the compiler, which takes seconds.
    torch.set_deterministic_debug_mode("default" if torch.cuda.is_available() else "error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, hides nothing here


def config_hash(config: RunConfig) -> str:
    """Return a short fingerprint of a resolved config."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions a result may depend on."""
    installed = {name: metadata.version(name) for name in ("torch", "transformers", "accelerate")}
    return {"python": platform.python_version(), **installed}
