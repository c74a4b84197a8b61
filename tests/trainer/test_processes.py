"""Two processes make the same update as one."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.trainer.runs import events, make, metrics, small, start, train


def test_two_processes_take_the_same_steps_as_one(tmp_path):
    # Adam divides by the gradient's size; a larger epsilon keeps rounding noise from becoming a full step.
    changes = {"optimiser": {"steps": 4, "epsilon": 1e-3, "minibatches_per_step": 2}, "objective": {"preset": "aepo"}}
    one = make(tmp_path / "one", small(**changes))
    two = make(tmp_path / "two", small(**changes, resources={"processes": 2}))
    process = start(two)
    train(one)
    assert process.wait() == 0, two.log.read_text()
    assert len(events(two, "started")) == 1
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
