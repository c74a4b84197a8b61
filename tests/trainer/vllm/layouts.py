"""Run by torchrun with two processes, each with a vLLM engine: weights from every layout into it, then a whole run.

Usage: layouts.py FOLDER; the main process writes found.json there, FOLDER/run is trained at the end.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tests.trainer.rollout.naive import requests
from tests.trainer.sharded_cases import updates, write_model
from tests.trainer.vllm.agreement import furthest
from trainer.attempt import run_attempt
from trainer.config import ModelConfig, OptimiserConfig
from trainer.distributed import World
from trainer.optimiser import Optimiser
from trainer.policy import Policy
from trainer.rollout.settings import SamplingConfig, VllmConfig
from trainer.rollout.vllm.engine import VllmEngine
from trainer.rollout.weights import weights

CASES: dict[str, dict[str, Any]] = {
    "tied": {"sharded": True},
    "untied": {"sharded": True, "architecture": {"tie_word_embeddings": False}},
    "bfloat16": {"sharded": True, "model": {"dtype": "bfloat16"}},
    "lora": {"sharded": False, "model": {"lora": {"enabled": True, "rank": 4}}},
}
SAMPLING = SamplingConfig(
    max_prompt_tokens=16, max_completion_tokens=16, vllm=VllmConfig(cache_gigabytes=0.1, max_sequences=16)
)
MOVES = OptimiserConfig(learning_rate=1e-2, warmup_steps=0, steps=8)


def synchronised(world: World, path: Path, *, sharded: bool, model: dict[str, Any]) -> dict[str, Any]:
    """Move the weights three times and copy them each time; return what engine and trainer then differ by, nats."""
    torch.manual_seed(0)  # adapters begin alike in all processes, as in a run
    policy = Policy(path, ModelConfig(**model), world.device, world=world, sharded=sharded)
    mover = Optimiser(policy.parameters, MOVES, policy.placement)
    engine = VllmEngine(policy, SAMPLING)
    found: dict[str, Any] = {"stale": [], "probe": [], "tokens": []}
    engine.sync_weights(0)
    for version in (1, 2, 3):
        updates(policy, mover, world.rank)
        found["stale"].append(engine.probe())
        engine.sync_weights(version)
        found["probe"].append(engine.probe())
        asked = requests(policy, 4 + world.rank, longest=12)  # processes have different work
        with policy.gathered():
            found["tokens"].append(furthest(policy, asked, engine.run(asked)))
    with policy.gathered():
        found["given"] = sorted(name for name, _ in weights(policy))
    found["taken"] = sorted(engine.driver._names)
    engine.close()
    return found


def main() -> None:
    torch.set_num_threads(1)
    world, folder = World(cpu=True), Path(sys.argv[1])
    seed = world.broadcast(random.SystemRandom().getrandbits(32)) + world.rank
    print(f"random.seed({seed})", flush=True)
    random.seed(seed)
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        if world.main:
            write_model(folder / name, head_dim=32, **case.get("architecture", {}))
        world.barrier()
        mine = synchronised(world, folder / name, sharded=case["sharded"], model=case.get("model", {}))
        found[name] = world.gather(mine)
        if world.main:
            with safe_open(folder / name / "model.safetensors", "pt") as file:
                found[name + " file"] = sorted(file.keys())
    if world.main:
        (folder / "found.json").write_text(json.dumps(found))
    world.barrier()
    sys.exit(run_attempt(folder / "run"))


if __name__ == "__main__":
    main()
