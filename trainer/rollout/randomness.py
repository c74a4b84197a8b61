"""Random numbers without state.

The number that decides a token is a hash of (request seed, position): the same in every batch, process and attempt, so
resuming needs no generator state. No torch.
"""

from __future__ import annotations

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """Return the splitmix64 finaliser of a 64-bit number (Steele, Lea, Flood, OOPSLA 2014)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def seed_of(*parts: int) -> int:
    """Return a 64-bit seed that depends on every part and their order."""
    state = GOLDEN
    for part in parts:
        state = mix((state + part * GOLDEN + GOLDEN) & MASK)
    return state


def uniforms(seeds: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return one number in [0, 1) for each (seed, position), uint64 [R] and int [R] to float64 [R]."""
    value = seeds + (position.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)  # wraps modulo 2^64
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((value ^ (value >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
