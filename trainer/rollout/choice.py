"""Which engine a run generates with, and where it lives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.rollout import Engine, engine

if TYPE_CHECKING:
    from trainer.config import RunConfig
    from trainer.distributed import World
    from trainer.events import RunFolder
    from trainer.policy import Policy


def generator(config: RunConfig, policy: Policy, world: World, folder: RunFolder) -> Engine:
    """Return a run's engine, in this process or behind a server; all processes must call this."""
    if not config.sampling.server.enabled:
        return engine(config.sampling.engine, policy, config.sampling)
    from trainer.rollout.server.engine import ServerEngine

    return ServerEngine(config, policy, world, folder)
