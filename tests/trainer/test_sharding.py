"""Weights, gradients and moments in shards (FSDP2) give what one process gives, and go over into each other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.trainer.runs import ROOT, environment, events, make, metrics, small, start, train
from trainer.config import load
from trainer.errors import ConfigError
from trainer.events import RunFolder

# Adam divides by the gradient's size; a larger epsilon keeps rounding noise from becoming a full step.
# A minibatch is one group: there is always a process that has nothing to learn from.
CHANGES = {
    "sampling": {"prompts_per_step": 2},
    "optimiser": {"steps": 2, "epsilon": 1e-3, "minibatches_per_step": 2, "warmup_steps": 0, "learning_rate": 1e-3},
    "checkpoint": {"every_steps": 1},
    "evaluation": {"every_steps": 2},
    "objective": {"parts": [{"type": "kl_penalty"}, {"type": "entropy_bonus", "coefficient": 0.01}]},
}
SHARDED = {"resources": {"processes": 2, "sharding": "fsdp2"}}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """What two processes found, by case (sharded_cases.py)."""
    folder = tmp_path_factory.mktemp("cases")
    script = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "tests/trainer/sharded_cases.py"]
    done = subprocess.run(
        [sys.executable, *script, str(folder)], cwd=ROOT, env=environment(OMP_NUM_THREADS="1"), capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return json.loads((folder / "found.json").read_text("utf-8"))


@pytest.mark.parametrize("case", ["tied", "untied", "recomputed", "8bit"])
def test_two_updates_in_shards_are_those_of_one_process(cases, case):
    found = cases[case]
    assert found["difference"] < 1e-5
    assert found["scores"] < 1e-5
    assert found["norms"][0] == pytest.approx(found["norms"][1], rel=1e-5)
    assert found["state"] <= (1 if case == "8bit" else 1e-6)  # codes: the nearest one beside


def test_a_bfloat16_model_agrees_within_its_rounding_and_has_float32_masters(cases):
    found = cases["bfloat16"]
    assert found["norms"][0] == pytest.approx(found["norms"][1], rel=5e-3)
    assert found["difference"] < 2e-3  # two units in the last place of a weight
    assert found["state"] < 2e-3


@pytest.mark.parametrize("case", ["tied", "untied", "bfloat16", "8bit"])
def test_each_process_holds_half(cases, case):
    assert max(cases[case]["held"]) < 0.51 * cases[case]["whole"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run in one process and the same in shards, two steps each, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("runs")
    one, two = make(folder / "one", small(**CHANGES)), make(folder / "two", small(**CHANGES, **SHARDED))
    process = start(two)
    train(one)
    assert process.wait() == 0, two.log.read_text()
    return one, two


def furthest(a: RunFolder, b: RunFolder, step: int = 2) -> float:
    ours, theirs = (load_file(folder.checkpoint(step) / "model.safetensors") for folder in (a, b))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def test_a_run_in_shards_is_the_run_of_one_process(runs):
    one, two = runs
    assert furthest(one, two) < 1e-5
    ours, theirs = metrics(one), metrics(two)
    for step, values in ours.items():
        assert values.keys() == theirs[step].keys()
        for name, value in values.items():
            assert theirs[step][name] == pytest.approx(value, abs=1e-5, rel=1e-4), (step, name)
    figures = [[event["values"] for event in events(folder, "evaluation")] for folder in runs]
    assert figures[0] == figures[1]


def test_a_checkpoint_resumes_in_shards_and_out_of_them(runs, tmp_path):
    one, two = runs
    apart, together = (_after_one_step(folder, tmp_path / name) for folder, name in ((one, "apart"), (two, "together")))
    apart.config.write_text(small(**CHANGES, **SHARDED).model_dump_json(), "utf-8")
    together.config.write_text(small(**CHANGES).model_dump_json(), "utf-8")
    process = start(apart)
    assert train(together, attempt=2)[0] == "finished"
    assert process.wait() == 0, apart.log.read_text()
    for folder in (apart, together):
        assert [event["resume_step"] for event in events(folder, "started")][-1] == 1
        assert furthest(one, folder) < 1e-5


def _after_one_step(folder: RunFolder, path) -> RunFolder:
    """Return a copy of a run as it was after its first step."""
    shutil.copytree(folder.path, path)
    copy = RunFolder(path)
    shutil.rmtree(copy.checkpoint(2))
    return copy


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resources": {"sharding": "fsdp2"}}, "one process"),
        ({**SHARDED, "model": {"lora": {"enabled": True}}}, "adapters"),
    ],
)
def test_sharding_that_cannot_work_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words) as raised:
        load(changes)
    assert raised.value.field == "resources.sharding"
