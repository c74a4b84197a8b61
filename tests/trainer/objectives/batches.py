"""Small batches for the objective tests, hand-made and random."""

from __future__ import annotations

import torch

from trainer.batch import TokenBatch
from trainer.objectives import Objective, ObjectiveConfig, Outcome, Step
from trainer.statistics import STATISTICS

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


# lowest, highest, whole numbers only: what each rarer statistic may be; others lie in [0, 1]
RANGES: dict[str, tuple[float, float, bool]] = {
    "max_logprob": (-3, 0, False),
    "mean_logit": (-9, 9, False),
    "logsumexp": (-9, 9, False),
    "token_logit": (-9, 9, False),
    "top5_prob": (1e-6, 0.2, False),
    "tempered_logprob": (-30, 0, False),
    "kept_logprob": (-1e4, 0, False),
    "nucleus_entropy": (0, 9, False),
    "tempered_entropy": (0, 9, False),
    "gradient_feature": (-1, 1, False),
    "embedding": (-1, 1, False),
    "answer": (-1, 2, True),
    "correct": (0, 1, True),
    "planning": (0, 1, True),
    "trigger": (0, 1, True),
    "think_end": (-1, 2, True),
    "trajectory": (0, 2, True),
    "turn": (0, 2, True),
    "parent": (-1, -1, True),  # trees are made by hand: a random parent is no tree
    "fork_at": (0, 0, True),
    "off_policy": (0, 1, True),
    "replayed": (0, 1, True),
    "teacher_logprob": (-30, 0, False),
    "teacher_kl": (0, 30, False),
    "teacher_reverse_kl": (0, 30, False),
    "span": (-1, 1, True),
    "log_partition": (-9, 9, False),
}
WIDTH = 3  # entries of a vector statistic


def rare(generator: torch.Generator, tokens: int, completions: int) -> dict[str, torch.Tensor]:
    """Return every rarer statistic at random within its range."""
    found = {}
    for name, info in STATISTICS.items():
        if info.core:
            continue
        low, high, whole = RANGES.get(name, (0, 1, False))
        shape = [tokens if info.domain == "token" else completions, *([WIDTH] if info.width else [])]
        values = low + (high - low) * torch.rand(shape, generator=generator, dtype=DOUBLE)
        found[name] = values.round() if whole else values
    return found


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
        sum_p2=torch.rand(tokens, generator=generator, dtype=DOUBLE),
        sum_p2_logp=-normal().abs(),
        extra=rare(generator, tokens, count),
        truncated=torch.rand(count, generator=generator) < 0.2,
        auxiliary=torch.arange(count) >= count - samples,
    )


def objective(preset: str, *parts: dict) -> Objective:
    return Objective(ObjectiveConfig.model_validate({"preset": preset, "parts": list(parts)}))


def run(machine: Objective, batch: TokenBatch, **step) -> Outcome:
    """Return the outcome of prepare and apply on one step."""
    now = Step(**step)
    return machine.apply(machine.prepare(batch, now), now)
