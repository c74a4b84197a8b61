"""The GPU check, as far as a machine without a GPU can tell: its parts exist, and its engine parts work on a CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.trainer.runs import ROOT
from trainer.config import ModelConfig
from trainer.policy import Policy
from trainer.rollout.hf import HfEngine

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Iterator[Path]:
    sys.path.insert(0, str(ROOT / "bench"))
    yield ROOT / "bench"
    sys.path.remove(str(ROOT / "bench"))


@pytest.fixture(scope="module")
def check(bench) -> ModuleType:
    import gpu_check

    return gpu_check


@pytest.fixture(scope="module")
def engines(bench) -> ModuleType:
    import gpu_engines

    return gpu_engines


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_and_ends_well(check, engines, capsys):
    assert check.main([]) == 0
    assert engines.main(["agreement"]) == 0
    assert capsys.readouterr().out.count("No CUDA device here") == 2


def test_what_a_part_lacks_is_named(check):
    part = check.Part("vLLM", ("bench/gpu_engines.py", "agreement"), ("torch", "no_such_package"), portable=True)
    assert check.outcome(part) == "left out: no_such_package not installed"
    assert check.outcome(check.PARTS[0], "cpu") == "left out: it needs a GPU"


def test_beside_vllm_little_else_is_needed(check, bench):
    """A GPU machine without internet may have torch and vLLM alone."""
    (part,) = (part for part in check.PARTS if "vllm" in part.needs)
    spared = sorted({*check.TRAINER, *check.WEB, "peft", "uvicorn", "psutil", "playwright"} - {*part.needs})
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({spared})); sys.path.insert(0, {str(bench)!r})\n"
        "import gpu_engines as g; from trainer.rollout.vllm.engine import VllmEngine\n"
        "g.HfEngine(g.Policy(g.resolve(g.TINY).path, g.ModelConfig(), g.torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_part_is_a_command_that_exists(check, engines):
    for part in check.PARTS:
        if part.arguments[0].endswith(".py"):
            assert (check.ROOT / part.arguments[0]).is_file(), part.title
        assert not part.portable or part.arguments[1] in engines.PARTS, part.title
    assert {part.arguments[1] for part in check.PARTS if part.portable} == set(engines.PARTS)


@pytest.mark.parametrize("gpus", [1, 2])
def test_what_it_would_run_on_gpus_is_a_valid_run(engines, gpus, monkeypatch):
    """All but the trainers themselves, which are noted instead of started."""
    configs = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(engines, "find_spec", lambda name: True)
    monkeypatch.setattr(engines, "_run", lambda found, name, config: configs.append((name, config)))
    for part in (engines.runs, engines.server):
        part(torch.device("cuda"), engines.Sizes())
    names = [name for name, _ in configs]
    assert names[:4] == ["hf, float32", "hf, bfloat16", "vllm, float32", "vllm, bfloat16"]
    assert all(config.resources.gpus == 1 for _, config in configs[:4])
    for (_, config), weights in zip(configs[4:], ("folder", "broadcast"), strict=True):
        assert (config.sampling.engine, config.sampling.server.weights) == ("vllm", weights)
        assert config.sampling.server.gpus == 1, "vLLM's GPU"
        assert config.resources.gpus == gpus - 1, "what is left for the trainer"


def test_an_engine_is_held_to_the_trainer(engines):
    policy = Policy(ROOT / "trainer/builtin/countdown-tiny-llama", ModelConfig(), CPU)
    policy.budget = 4096
    found, asked = engines.Findings(), engines.requests(policy, engines.SMALL)
    engines._compare(found, "tiny", "first", policy, HfEngine(policy), asked)
    assert not found.wrong
    assert engines._speed(HfEngine(policy), asked, 1) > 0

    class Stale(HfEngine):
        def probe(self) -> float:
            return 7.0

    engines._compare(found, "tiny", "stale", policy, Stale(policy), asked)
    assert found.wrong == ["tiny, stale: the probe is 7, more than 0.01"]
    (title,) = found.tables
    assert [row[1] for row in found.tables[title][1]] == ["first", "stale"]


def test_runs_are_tabled_and_what_is_missing_is_said(engines, monkeypatch, capsys):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    small = engines.Sizes(prompts=2, samples=2, steps=1)
    found = engines.runs(CPU, small)
    assert not found.wrong
    assert found.left_out == ["the run under vllm: vLLM is not installed"]
    found.show()
    assert "| hf, float32 |" in capsys.readouterr().out
