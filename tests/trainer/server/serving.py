"""A server inside the test's own process, and trainers that speak to it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.trainer.runs import make, small
from trainer.config import RunConfig
from trainer.distributed import World
from trainer.models import resolve
from trainer.policy import Policy
from trainer.rollout import GenRequest, SamplerSpec
from trainer.rollout.server import secret
from trainer.rollout.server.backend import HfBackend
from trainer.rollout.server.engine import ServerEngine
from trainer.rollout.server.host import Server, listen
from trainer.rollout.server.weights import digest


@contextmanager
def served(root: Path, backend: HfBackend, port: int = 0, **changes: Any) -> Iterator[tuple[Server, str]]:
    """Serve in a thread; yields the server and its address. Its token lies in `root/token`."""
    token = secret.make(root / "token")
    model = digest(resolve(small().model.source).path)
    server, listener = Server(backend, "hf", token, model, [root], **changes), listen("127.0.0.1", port)
    thread = threading.Thread(target=server.serve, args=(listener,))
    thread.start()
    try:
        yield server, f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.end("the test is over")
        thread.join()


def policy(**model: Any) -> Policy:
    """Return a policy whose weights are nobody else's."""
    config = small(model=model).model
    found = Policy(resolve(config.source).path, config, torch.device("cpu"))
    found.budget = 4096
    return found


def move(found: Policy, scale: float = 0.05) -> None:
    """Train a policy, as far as a server can tell."""
    with torch.no_grad():
        for parameter in found.parameters:
            parameter.add_(scale * torch.randn_like(parameter) * parameter.abs().mean())


def configured(address: str = "", **changes: Any) -> RunConfig:
    """Return a small run that generates in a server."""
    return small(sampling={"server": {"enabled": True, "address": address, **changes}})


def engine(root: Path, found: Policy, address: str, **changes: Any) -> ServerEngine:
    """Return a trainer's engine that speaks to a server; its run folder is `root/run`."""
    config = configured(address, **changes)
    return ServerEngine(config, found, World(cpu=True), make(root / "run", config))


def requests(count: int, *, longest: int = 12) -> list[GenRequest]:
    """Return requests of different lengths and temperatures, with ids that are no positions; the seed is printed."""
    seed = random.randrange(1 << 40)
    print("seed", seed)
    dice = random.Random(seed)
    return [
        GenRequest(
            id=100 + 7 * index, group=index // 2, sample=index % 2, prompt_ids=tuple(dice.choices(range(3, 13), k=5)),
            prefix_ids=tuple(dice.choices(range(3, 13), k=index % 3)), seed=dice.randrange(1 << 63), max_new=longest,
            sampler=SamplerSpec(dice.choice([1.0, 0.7]), dice.choice([1.0, 0.9])), watch=True,
        )
        for index in range(count)
    ]  # fmt: skip
