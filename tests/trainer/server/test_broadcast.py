"""Which line weights take from memory to memory, as far as a machine without GPUs can tell."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from trainer.rollout.server import broadcast

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("ours", "theirs", "line"), [(GPU, "cuda", GPU), (GPU, "cpu", CPU), (CPU, "cuda", CPU), (GPU, None, CPU)]
)
def test_nccl_takes_a_gpu_at_both_ends(ours, theirs, line):
    assert broadcast.common(ours, theirs) == line


@pytest.mark.parametrize("before", [None, "0"])
def test_waiting_blocks_in_this_group_alone(before, monkeypatch):
    monkeypatch.delenv(broadcast.BLOCKING, raising=False)
    if before is not None:
        monkeypatch.setenv(broadcast.BLOCKING, before)
    with broadcast._environment(broadcast.BLOCKING, "1"):
        assert os.environ[broadcast.BLOCKING] == "1"
    assert os.environ.get(broadcast.BLOCKING) == before


def test_torch_still_makes_such_a_group():
    """Its stub and header, because a CPU's build has no NCCL to ask."""
    home = Path(torch.__file__).parent
    stub = (home / "_C/_distributed_c10d.pyi").read_text("utf-8")
    group = stub[stub.index("class ProcessGroupNCCL") :]
    assert re.search(r"class Options\(Backend.Options\)", group)
    assert re.search(r"store: Store,\s+rank: int,\s+size: int,\s+options: Options", group)
    assert "def _timeout(self, val: timedelta)" in stub
    header = home / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"
    assert f'"{broadcast.BLOCKING}"' in header.read_text("utf-8")
