"""Two processes make the same update as one, and say why they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.trainer.runs import ROOT, environment, events, make, metrics, small, start, train
from trainer.checkpoint import newest
from trainer.events import KIND_PROMPT, Control, Exit, frames
from trainer.last_words import first_to_fail, forget, write_exit


def opened(live: Path) -> list[tuple[int, bool]]:
    """Return group and whether somebody chose it, of every completion that can be watched."""
    found = [json.loads(frame.payload) for frame, _ in frames(live.read_bytes()) if frame.kind == KIND_PROMPT]
    return [(about["group"], about["picked"]) for about in found]


def test_two_processes_take_the_same_steps_as_one(tmp_path):
    # Adam divides by the gradient's size; a larger epsilon keeps rounding noise from becoming a full step.
    changes = {"optimiser": {"steps": 4, "epsilon": 1e-3, "minibatches_per_step": 2}, "objective": {"preset": "aepo"}}
    one = make(tmp_path / "one", small(**changes))
    two = make(tmp_path / "two", small(**changes, resources={"processes": 2}))
    two.control.write_text(Control(watch=[0, 3]).model_dump_json())
    process = start(two)
    train(one)
    assert process.wait() == 0, two.log.read_text()
    assert len(events(two, "started")) == 1
    # Every process shows what was chosen of its share of the prompts; what comes unasked, the first one.
    shown = [opened(two.live_of(rank)) for rank in (0, 1)]
    assert {group for group, _ in shown[0]} == {0, 2}
    assert {(group, picked) for group, picked in shown[1]} == {(3, True)}
    ours, theirs = metrics(one), metrics(two)
    assert ours.keys() == theirs.keys()
    for step, values in ours.items():
        assert values.keys() == theirs[step].keys()
        for name, value in values.items():
            assert theirs[step][name] == pytest.approx(value, abs=1e-5, rel=1e-4), (step, name)
    a, b = (load_file(folder.checkpoint(4) / "model.safetensors") for folder in (one, two))
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-6
    figures = [[event["values"] for event in events(folder, "evaluation")] for folder in (one, two)]
    assert figures[0] == figures[1]


def test_a_run_says_why_its_second_process_failed(tmp_path):
    """The first one only sees a connection break; tests/trainer/second_fails.py fails in the third step."""
    changes = {"resources": {"processes": 2}, "checkpoint": {"every_steps": 1}, "evaluation": {"every_steps": 0}}
    folder = make(tmp_path, small(**changes))
    script = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "tests/trainer/second_fails.py"]
    done = subprocess.run(
        [sys.executable, *script, str(folder.path)], cwd=ROOT, env=environment(OMP_NUM_THREADS="1"), capture_output=True
    )
    assert done.returncode
    ended, told = json.loads(folder.exit.read_text("utf-8")), events(folder, "failed")
    assert ended["status"] == "failed"
    assert ended["reason"] == told[0]["reason"] == "the engine fell over; resume the run from its checkpoint"
    assert sorted(metrics(folder)) == [1, 2]
    assert newest(folder)[0] == folder.checkpoint(2)


def test_the_first_to_fail_is_believed_and_a_new_attempt_forgets(tmp_path):
    folder = make(tmp_path, small())
    assert first_to_fail(folder) is None
    for rank in (3, 1):
        write_exit(folder, Exit(status="failed", reason=f"process {rank}", code=1), rank=rank)
    assert not folder.exit.exists()
    assert first_to_fail(folder).reason == "process 3"
    forget(folder)
    assert first_to_fail(folder) is None
