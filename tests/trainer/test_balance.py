"""Groups dealt anew to the processes: loads even out, nothing else changes."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.trainer.runs import ROOT
from trainer.balance import balanced, costs, deal, fullest
from trainer.completion import Completion
from trainer.config import ModelConfig
from trainer.layout import Layout
from trainer.policy import Policy
from trainer.rectangles import Trajectory
from trainer.tasks import Row

SAMPLES = 4


class ThreadWorld:
    """World among threads: a gather waits for everyone, and breaks where somebody does not call."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, items: list[Any]) -> None:
        self.rank, self.size, self.meeting, self.items = rank, size, meeting, items

    def gather(self, item: Any) -> list[Any]:
        self.items[self.rank] = item
        self.meeting.wait(10)
        found = list(self.items)
        self.meeting.wait(10)
        return found


def together(parts: list[Any], work: Any) -> list[Any]:
    """Return work(part, world) of all parts, each in a process of its own."""
    meeting, items = threading.Barrier(len(parts)), [None] * len(parts)
    worlds = [ThreadWorld(rank, len(parts), meeting, items) for rank in range(len(parts))]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(work, parts, worlds))


def step(random_: random.Random, groups: int, processes: int) -> list[list[Completion]]:
    """Return the completions of a step of ragged groups, each prompt where it was drawn."""
    parts: list[list[Completion]] = [[] for _ in range(processes)]
    for group in range(groups):
        prompt = tuple(random_.randrange(1, 12) for _ in range(random_.randint(1, 6)))
        longest = random_.choice([2, 10, 40])
        for sample in range(SAMPLES):
            tokens = tuple(random_.randrange(1, 12) for _ in range(random_.randint(1, longest)))
            parts[group % processes].append(
                Completion(
                    index=group * SAMPLES + sample, group=group, sample=sample, auxiliary=False,
                    row=Row(f"{group}", "", ""), tokens=Trajectory(prompt, tokens), engine_logprob=[],
                    finish_reason="stop", text="", offsets=[],
                )
            )  # fmt: skip
    return parts


@pytest.fixture
def ragged() -> list[list[Completion]]:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return step(random.Random(seed), groups=16, processes=4)


def test_groups_stay_whole_and_in_order_and_nobody_is_lost(ragged):
    dealt = together(ragged, lambda part, world: balanced(part, world, 1))
    assert sorted(c.index for part in dealt for c in part) == list(range(16 * SAMPLES))
    owners = {(c.group, rank) for rank, part in enumerate(dealt) for c in part}
    assert len(owners) == 16
    for part in dealt:
        assert [c.index for c in part] == sorted(c.index for c in part)


def test_the_fullest_process_gets_no_fuller_in_any_minibatch(ragged):
    dealt = together(ragged, lambda part, world: balanced(part, world, 2))
    for number in range(2):
        before, after = (
            [sum(cost for group, cost in costs(part).items() if group // 8 == number) for part in parts]
            for parts in (ragged, dealt)
        )
        largest = max(cost for part in dealt for group, cost in costs(part).items() if group // 8 == number)
        assert max(after) <= max(before)
        assert max(after) <= 1.02 * 4 / 3 * max(sum(after) / 4, largest)  # Graham's bound, and what is not worth it


def test_the_longest_goes_first():
    tokens, held = {0: 9, 1: 1, 2: 8, 3: 2}, {0: 0, 1: 1, 2: 0, 3: 1}
    owner = deal(tokens, held, 2)
    assert fullest(tokens, held, 2) == 17
    assert fullest(tokens, owner, 2) == 10
    assert owner[0] == 0  # stays where it is: less travels


def test_even_loads_stay_where_they_are():
    parts = step(random.Random(1), groups=4, processes=2)
    for part in parts:
        for c in part:
            c.tokens = Trajectory((1, 2), (3, 4))
    dealt = together(parts, lambda part, world: balanced(part, world, 1))
    assert all(new is old for new, old in zip(dealt, parts, strict=True))


def test_the_steps_order_and_the_gradient_are_the_same(ragged):
    policy = Policy(ROOT / "trainer/builtin/countdown-tiny", ModelConfig(), torch.device("cpu"))
    policy.budget = 256

    def placed(part: list[Completion], world: Any) -> tuple[Layout, list[Completion]]:
        index, length = [c.index for c in part], [len(c.tokens.completion) for c in part]
        return Layout.of(world, torch.tensor(index), torch.tensor(length)), part

    def outcome(parts: list[list[Completion]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the step's lengths and the gradients summed over the processes."""
        policy.lm.zero_grad()
        for layout, part in together(parts, placed):
            slopes = torch.linspace(-1, 1, int(layout.length.sum())) / len(layout.length)  # of the step's tokens
            policy.backward([c.tokens for c in part], 1.0, slopes[layout.mine], None, policy.lm.zero_grad)
        return layout.length, [p.grad.clone() for p in policy.parameters if p.grad is not None]

    dealt = together(ragged, lambda part, world: balanced(part, world, 1))
    (lengths, ours), (their_lengths, theirs) = outcome(dealt), outcome(ragged)
    assert lengths.tolist() == their_lengths.tolist()
    scale = max(float(gradient.abs().max()) for gradient in theirs)
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-6 * max(1.0, scale)
