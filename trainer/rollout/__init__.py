"""Rollouts: engines that generate, strategies that say what to generate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.rollout.base import (
    Caps,
    Chunk,
    Done,
    Engine,
    Generation,
    GenRequest,
    Pick,
    Prompt,
    SamplerSpec,
    Scene,
    Strategy,
    TapSpec,
    Watcher,
)

if TYPE_CHECKING:
    from trainer.policy import Policy
    from trainer.rollout.settings import SamplingConfig

__all__ = [
    "Caps",
    "Chunk",
    "Done",
    "Engine",
    "GenRequest",
    "Generation",
    "Pick",
    "Prompt",
    "SamplerSpec",
    "Scene",
    "Strategy",
    "TapSpec",
    "Watcher",
    "engine",
]


def engine(name: str, policy: Policy, sampling: SamplingConfig | None = None) -> Engine:
    """Return the engine called `name` (sampling.engine) over a policy; raises ConfigError or ResourceError."""
    if name == "vllm":
        from trainer.rollout.settings import SamplingConfig
        from trainer.rollout.vllm.engine import VllmEngine

        return VllmEngine(policy, sampling or SamplingConfig())
    from trainer.rollout.hf import HfEngine

    return HfEngine(policy)
