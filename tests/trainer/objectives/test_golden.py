"""Every recording in tests/golden through `evaluate`: `pytest -s` prints each comparison and its error."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import pytest

from tests.trainer.objectives import golden
from trainer.objectives.evaluate import main

for module in pkgutil.iter_modules(golden.__path__):
    importlib.import_module(f"{golden.__name__}.{module.name}")

# definitions, not an objective: the kernel tests hold them
ELSEWHERE = {"token_stats__derived"}


@pytest.mark.parametrize("name", [name for name in golden.recordings() if name not in ELSEWHERE])
def test_recorded_numbers_are_reproduced(name: str) -> None:
    case = golden.case_of(name)
    assert case, f"no case reads {name}.json; write one in tests/trainer/objectives/golden"
    found = list(case(golden.load(name)))
    for item in found:
        print(f"{name:40} {item.quantity:28} error {item.error:.1e} (tolerance {item.tolerance:.0e})")
    assert found
    assert [item for item in found if not item.error <= item.tolerance] == []


def test_the_command_line_gives_the_same_numbers(tmp_path: Path) -> None:
    recording = golden.load("dapo_clip_higher__token_mean")
    (tmp_path / "o.json").write_text(json.dumps({"preset": "dapo", "parts": [{"type": "ppo_clip", "dual_clip": 3.0}]}))
    (tmp_path / "b.json").write_text(json.dumps(recording.inputs))
    out = tmp_path / "out.json"
    assert main(["--objective", str(tmp_path / "o.json"), "--batch", str(tmp_path / "b.json"), "--out", str(out)]) == 0
    gradient = json.loads(out.read_text())["grad_logprob"]
    assert golden.same("gradient", gradient, recording.outputs["grad_log_prob"], 1e-8).error <= 1e-8
