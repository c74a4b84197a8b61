"""Run by torchrun with two processes: two updates of small models under FSDP2 beside the same in one process.

Usage: sharded_cases.py FOLDER; the main process writes found.json there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from trainer.config import ModelConfig, OptimiserConfig
from trainer.distributed import World
from trainer.optimiser import Optimiser
from trainer.policy import Policy
from trainer.rectangles import Trajectory

ROOT = Path(__file__).parents[2]
SEQUENCES = [
    Trajectory((1, 2, 3), (4, 5, 6, 7), (False, True, False, True)), Trajectory((1, 2, 3), (9, 8)),
    Trajectory((7, 7), (9, 5, 6, 7, 1)),
    Trajectory((2,), (8,)), Trajectory((2,), (9,)), Trajectory((3, 1), (2, 2, 2)),
]  # fmt: skip
# Which process has which: the second has only one-token completions at first, then nothing at all.
DEALT = [([0, 1, 2, 5], [3, 4]), ([0, 1, 2, 3, 4, 5], [])]
CASES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"architecture": {"tie_word_embeddings": False}},
    "recomputed": {"model": {"gradient_checkpointing": True}},
    "bfloat16": {"model": {"dtype": "bfloat16"}},
    "8bit": {"optimiser": {"state_precision": "8bit"}},
}


def write_model(path: Path, **changes: Any) -> None:
    """Write a random Llama of two layers, large enough that some tensors have 8-bit moments."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 101, "tie_word_embeddings": True,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(shape | changes))).save_pretrained(path)
    AutoTokenizer.from_pretrained(ROOT / "trainer/builtin/countdown-tiny").save_pretrained(path)


def updates(policy: Policy, optimiser: Optimiser, rank: int | None) -> list[float]:
    """Take two steps on the process's sequences (None: on all) and return the gradient norms."""
    policy.budget, norms = 12, []
    for step, dealt in enumerate(DEALT, 1):
        chosen = dealt[rank] if rank is not None else sorted(dealt[0] + dealt[1])
        sequences = [SEQUENCES[i] for i in chosen]
        slopes = [(0.3 + i + 0.1 * k, 0.2 - 0.1 * i) for i in chosen for k in range(SEQUENCES[i].learned)]
        logprob, entropy = (torch.tensor([pair[n] for pair in slopes]) for n in (0, 1))
        policy.backward(sequences, 0.9, logprob, entropy, optimiser.zero_grad)
        norm = optimiser.step(step)
        assert norm is not None
        norms.append(norm)
    return norms


def held(policy: Policy, optimiser: Optimiser) -> int:
    """Return the bytes of weights, one set of gradients and moments that this process holds."""
    weights = [policy.placement.local(parameter) for parameter in policy.parameters]
    own = {tensor.data_ptr() for tensor in weights}
    masters = [tensor for tensor in optimiser.masters if tensor.data_ptr() not in own]
    moments = list[torch.Tensor]()
    optimiser._adamw.state([0] * len(weights), lambda tensor, _: moments.append(tensor) or tensor)
    gradients = optimiser.masters
    return sum(tensor.nbytes for tensor in [*weights, *masters, *gradients, *moments])


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    with policy.gathered():
        return {name: tensor.detach().float().clone() for name, tensor in policy.lm.named_parameters()}


def compare(world: World, path: Path, *, model: dict[str, Any], optimiser: dict[str, Any]) -> dict[str, Any]:
    config = OptimiserConfig(**{"learning_rate": 1e-2, "epsilon": 1e-2, "warmup_steps": 0, "steps": 4, **optimiser})
    sides = {}
    for sharded in (True, False):
        policy = Policy(path, ModelConfig(**model), world.device, world=world if sharded else None, sharded=sharded)
        mover = Optimiser(policy.parameters, config, policy.placement)
        norms = updates(policy, mover, world.rank if sharded else None)
        scores = policy.score(SEQUENCES, 0.9)["logprob"]
        itself = policy.distance(policy, SEQUENCES[world.rank * 3 :], 0.9)  # micro-batches differ in number
        assert float(itself.abs().max()) < 1e-6
        sides[sharded] = (weights(policy), norms, held(policy, mover), scores, mover.state())
    (ours, norms, bytes_held, scores, state), (theirs, their_norms, whole, their_scores, their_state) = (
        sides[True],
        sides[False],
    )
    return {
        "difference": max(float((ours[name] - theirs[name]).abs().max()) for name in theirs),
        "scores": float((scores - their_scores).abs().max()),
        "norms": [norms, their_norms],
        "held": world.gather(bytes_held),
        "whole": whole,
        "state": furthest(state, their_state) if world.main else 0.0,
    }


def furthest(a: Any, b: Any) -> float:
    """Return the largest difference of two saved states; they must have one structure."""
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    pairs = [(a[key], b[key]) for key in b] if isinstance(b, dict) else list(zip(a or [], b or [], strict=True))
    assert isinstance(b, dict) is isinstance(a, dict)
    return max([furthest(x, y) for x, y in pairs], default=0.0)


def main() -> None:
    torch.set_num_threads(1)
    world = World(cpu=True)
    found, folder = {}, Path(sys.argv[1])
    for name, case in CASES.items():
        if world.main:
            write_model(folder / name, **case.get("architecture", {}))
        world.barrier()
        found[name] = compare(world, folder / name, model=case.get("model", {}), optimiser=case.get("optimiser", {}))
    if world.main:
        (folder / "found.json").write_text(json.dumps(found))
    world.barrier()
    world.close()


if __name__ == "__main__":
    main()
