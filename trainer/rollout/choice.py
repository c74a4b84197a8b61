"""Which engine a run generates with, and where it lives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.conflicts import with_engine
from trainer.errors import ConfigError
from trainer.rollout import Engine, engine
from trainer.rollout.vllm import forecast

if TYPE_CHECKING:
    from trainer.config import RunConfig
    from trainer.distributed import World
    from trainer.events import RunFolder
    from trainer.model_files import ModelInfo
    from trainer.policy import Policy


def foresee(config: RunConfig, info: ModelInfo) -> None:
    """Raise ConfigError or ResourceError for what would stop a run's engine, as far as the config and files tell.

    Before the weights are loaded, which takes minutes for a large model.
    """
    for field, message in forecast.problems(config, info, trains=True):
        raise ConfigError(message, field)
    if config.sampling.server.enabled:
        from trainer.rollout.server.engine import foresee

        foresee(config.sampling.server)


def generator(config: RunConfig, policy: Policy, world: World, folder: RunFolder) -> Engine:
    """Return a run's engine, in this process or behind a server; all processes must call this.

    Raises ConfigError where it cannot be started, or cannot do what the run takes.
    """
    made = _started(config, policy, world, folder)
    if why := with_engine(config, made.caps):
        made.close()
        raise ConfigError(why, "sampling.engine")
    return made


def _started(config: RunConfig, policy: Policy, world: World, folder: RunFolder) -> Engine:
    if not config.sampling.server.enabled:
        return engine(config.sampling.engine, policy, config.sampling)
    from trainer.rollout.server.engine import ServerEngine

    return ServerEngine(config, policy, world, folder)
