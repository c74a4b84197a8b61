"""Tiny random decoders and ragged completions of shared prompts, for the tests of forward passes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from trainer.rectangles import Trajectory

VOCABULARY = 40
CPU = torch.device("cpu")
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "gemma": lambda: GemmaConfig(**SIZES, head_dim=8),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=512),
}


def causal_lm(config: Any) -> Any:
    """Return a random causal language model in float64 whose attention is far from uniform."""
    lm = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().double()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(8)
    return lm


def trajectories(dice: random.Random, groups: int = 4, samples: int = 5, longest: int = 9) -> list[Trajectory]:
    """Return shuffled completions; prompts may repeat each other's beginnings, and completions each other."""

    def ids(high: int) -> tuple[int, ...]:
        return tuple(dice.randrange(3, VOCABULARY) for _ in range(dice.randint(1, high)))

    rows = [Trajectory(prompt, ids(longest)) for prompt in (ids(12) for _ in range(groups)) for _ in range(samples)]
    rows += [rows[0], Trajectory(rows[0].prompt, rows[1].completion[:1]), Trajectory(rows[0].prompt[:1], (5,))]
    dice.shuffle(rows)
    return rows


def passed(decoder: Any, rows: list[Trajectory], states: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    """Return the hidden states of a pass and the gradients of all weights by a function that tells tokens apart."""
    decoder.zero_grad()
    hidden = states(decoder, rows, CPU)
    (hidden.sin() * torch.arange(1, len(hidden) + 1)[:, None]).mean(0).sum().backward()
    return [hidden.detach(), *(p.grad.clone() for p in decoder.parameters() if p.grad is not None)]


def assert_same(found: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Compare tensor by tensor; norms and rotations compute in float32 whatever the weights are."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, float(other.abs().max())))
