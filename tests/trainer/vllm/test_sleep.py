"""The way to sleep and back, in the order that a GPU needs; what stands for vLLM here only notes what it is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.errors import ResourceError, RunFailed
from trainer.rollout.settings import VllmConfig
from trainer.rollout.vllm import driver as driving
from trainer.rollout.vllm.driver import Driver


class Sleeper:
    """Notes what an engine is told; `full` is what it finds no memory for."""

    def __init__(self, told: list[Any], full: str = "") -> None:
        self.told, self.full, self.busy = told, full, False

    def sleep(self, level: int) -> None:
        self.told.append(f"sleep {level}")

    def wake_up(self, tags: list[str] | None = None) -> None:
        if tags and self.full in tags:
            raise RuntimeError("CUDA Error: out of memory at cumem_allocator.cpp:119")
        self.told.append(f"wake {' '.join(tags or ['all'])}")

    def reset_prefix_cache(self) -> bool:
        self.told.append("forget")
        return not self.busy


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def driver(told, monkeypatch) -> Driver:
    made = Driver.__new__(Driver)
    made.settings, made.device = VllmConfig(), torch.device("cuda")
    made.core = SimpleNamespace(llm=Sleeper(told), close=lambda: told.append("close"))
    made.tap = SimpleNamespace(close=lambda: told.append("untap"))
    made.closed = made._asleep = made.exact = False
    made._names = frozenset()
    monkeypatch.setattr(driving.weights, "load", lambda core, tensors: told.append("load") or frozenset({"a"}))
    return made


def test_weights_come_before_the_cache(driver, told):
    driver.sleep()
    driver.sleep()
    driver.refresh([])
    driver.refresh([])
    assert told == ["sleep 2", "wake weights", "load", "wake kv_cache", "forget", "load", "forget"]


@pytest.mark.parametrize("part", ["weights", "kv_cache"])
def test_memory_that_is_gone_is_named_with_the_fix(driver, told, part):
    driver.sleep()
    driver.core.llm.full = part
    with pytest.raises(ResourceError, match=r"sampling\.vllm\.memory_share"):
        driver.refresh([])


def test_a_cache_that_is_kept_ends_the_run(driver):
    driver.core.llm.busy = True
    with pytest.raises(RunFailed, match="old weights"):
        driver.refresh([])


def test_a_sleeping_engine_is_woken_to_be_closed(driver, told):
    driver.sleep()
    driver.close()
    driver.close()
    driver.sleep()
    assert told == ["sleep 2", "wake all", "untap", "close"]


def test_nothing_sleeps_on_a_cpu(driver, told):
    driver.device = torch.device("cpu")
    driver.sleep()
    assert not told
