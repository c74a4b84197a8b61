"""Every preset through the real passes: no result depends on micro-batches or on the number of processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainer.gradients import gradients, launchable, models
from tests.trainer.runs import environment
from trainer.distributed import World

WHOLE, QUARTERS = 1 << 20, 64  # token budgets of a forward pass: the step in one piece, in four or more


@pytest.fixture(scope="module")
def pair():
    torch.set_num_threads(1)
    return models(World(cpu=True), shallow=True)


@pytest.fixture(scope="module")
def whole(pair) -> dict[str, torch.Tensor]:
    return {name: gradients(*pair, name, World(cpu=True), budget=WHOLE) for name in launchable()}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> dict[str, torch.Tensor]:
    path = tmp_path_factory.mktemp("gradients") / "two.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [str(Path(__file__).with_name("gradients.py")), str(path)]
    done = subprocess.run([*launcher, *script], env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path)


def furthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest deviation over the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-9))


@pytest.mark.parametrize("preset", launchable())
def test_micro_batches_do_not_matter(pair, whole, preset):
    assert furthest(gradients(*pair, preset, World(cpu=True), budget=QUARTERS), whole[preset]) < 1e-6


@pytest.mark.parametrize("preset", launchable())
def test_processes_do_not_matter(whole, two_processes, preset):
    assert furthest(two_processes[preset], whole[preset]) < 1e-6


def test_most_presets_learn_something_from_the_batch(whole):
    """The comparisons above would also pass on zeros."""
    silent = [name for name, gradient in whole.items() if not bool(gradient.any())]
    assert len(silent) <= len(whole) // 10, silent
