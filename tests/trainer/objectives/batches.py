"""Small batches for the objective tests, hand-made and random."""

from __future__ import annotations

import torch

from trainer.batch import TokenBatch
from trainer.objectives import Objective, ObjectiveConfig, Outcome, Step

DOUBLE = torch.float64


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def hand_batch(lengths: list[int], reward: list[float], group: list[int] | None = None, **fields) -> TokenBatch:
    """Return a float64 batch of completions with these lengths and rewards; log-probs -1 unless given."""
    count = sum(lengths)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long))
    position = torch.cat([torch.arange(n) for n in lengths]) if lengths else torch.arange(0)
    fields.setdefault("logprob", torch.full((count,), -1.0, dtype=DOUBLE))
    return TokenBatch(
        sequence=owner,
        position=position,
        group=torch.tensor(group if group is not None else [0] * len(lengths), dtype=torch.long),
        reward=doubles(*reward),
        length=torch.tensor(lengths, dtype=torch.long),
        **fields,
    )


def random_batch(generator: torch.Generator, prompts: int = 4, samples: int = 4, longest: int = 5) -> TokenBatch:
    """Return a random batch with every statistic, off-policy by a little."""
    count = prompts * samples
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    tokens = sum(lengths)

    def normal() -> torch.Tensor:
        return torch.randn(tokens, generator=generator, dtype=DOUBLE)

    logprob = -normal().abs() - 0.05
    return hand_batch(
        lengths,
        torch.randint(0, 2, (count,), generator=generator).double().tolist(),
        [index // samples for index in range(count)],
        logprob=logprob,
        old_logprob=logprob + 0.2 * normal(),
        engine_logprob=logprob + 0.2 * normal(),
        ref_logprob=logprob + 0.5 * normal(),
        entropy=normal().abs(),
        old_entropy=normal().abs(),
        truncated=torch.rand(count, generator=generator) < 0.2,
        auxiliary=torch.arange(count) >= count - samples,
    )


def objective(preset: str, *parts: dict) -> Objective:
    return Objective(ObjectiveConfig.model_validate({"preset": preset, "parts": list(parts)}))


def run(machine: Objective, batch: TokenBatch, **step) -> Outcome:
    """Return the outcome of prepare and apply on one step."""
    now = Step(**step)
    return machine.apply(machine.prepare(batch, now), now)
