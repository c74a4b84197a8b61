"""What is said before a run starts, field by field."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from trainer.cli import main
from trainer.config import RunConfig, load
from trainer.estimate import estimate
from trainer.models import inspect
from trainer.preflight import Preflight, check


def config(**sections: Any) -> RunConfig:
    return load({"sampling": {"max_prompt_tokens": 48}, **sections})


def data(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"type": "dataset", "path": str(path)}


def digits(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{number}=", "answer": str(number)} for number in range(count)]


def messages(report: Preflight, field: str, severity: str = "error") -> str:
    found = [*report.problems, *report.warnings]
    return " | ".join(item.message for item in found if (item.field, item.severity) == (field, severity))


@pytest.mark.parametrize("task", ["countdown", "split_sum"])
def test_the_built_in_tasks_are_ready_and_their_references_right(task: str) -> None:
    report = check(config(task={"type": task}, evaluation={"prompts": 20}))
    assert report.ok
    assert report.problems == report.warnings == []
    assert [(trial.score_of_answer, trial.score_of_empty) for trial in report.trials] == [(1.0, 0.0)] * 3
    assert json.loads(json.dumps(report.model_dump(mode="json")))["estimate"]["completions_per_step"] == 512


def test_the_default_config_is_ready() -> None:
    assert check(load({})).ok


def test_the_quick_check_imports_no_torch(tmp_path: Path) -> None:
    task = data(tmp_path / "a", digits(10))
    code = (
        "import sys; from trainer.config import load; from trainer.preflight import check;"
        f"r = check(load({{'task': {task!r}}}), deep=False); assert r.ok, r; assert r.trials == [];"
        "assert not {'torch', 'transformers', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("deep", [False, True])
def test_faults_of_model_and_data_are_all_named_at_once(tmp_path: Path, deep: bool) -> None:
    (tmp_path / "model").mkdir()
    report = check(
        config(
            model={"source": str(tmp_path / "model")},
            task={**data(tmp_path / "a", digits(10)), "answer_column": "label"},
        ),
        deep=deep,
    )
    assert "config.json is missing" in messages(report, "model.source")
    assert "no column 'label'; the columns are prompt, answer" in messages(report, "task.answer_column")
    assert not report.ok


@pytest.mark.parametrize("kind", ["wobble", "vit"])
def test_an_architecture_that_cannot_be_built_is_said_with_the_fix(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(str(inspect("builtin:countdown-tiny").path), folder)
    described = json.loads((folder / "config.json").read_text())
    described |= {"model_type": kind, "architectures": [f"{kind.title()}ForSomething"]}
    (folder / "config.json").write_text(json.dumps(described))
    said = messages(check(config(model={"source": str(folder)})), "model.source")
    assert f"has no causal language model for {kind.title()}ForSomething; choose another model" in said


def test_completions_longer_than_the_context_are_an_error_and_a_tight_fit_a_warning() -> None:
    long = check(config(sampling={"max_completion_tokens": 64}), deep=False)
    assert "the model takes 64 tokens in all" in messages(long, "sampling.max_completion_tokens")
    tight = check(config(sampling={"max_prompt_tokens": 64, "max_completion_tokens": 16}), deep=False)
    assert tight.ok
    assert "longer than 48 will be refused" in messages(tight, "sampling.max_prompt_tokens", "warning")


def test_the_longest_prompt_is_named(tmp_path: Path) -> None:
    rows = [*digits(20), {"prompt": "1" * 55 + "=", "answer": "7"}]
    task = {**data(tmp_path / "a", rows), "chat_template": False}
    report = check(config(task=task))
    message = messages(report, "sampling.max_prompt_tokens")
    assert "has 56 tokens and 48 are allowed" in message
    assert "'1111" in message
    room = messages(report, "sampling.max_completion_tokens")
    assert "has 56 tokens and the model takes 64 in all; allow 8 or fewer" in room


def test_the_reward_is_tried_as_the_run_would(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}=", "answer": f"\\frac{{1}}{{{number + 2}}}"} for number in range(40)]
    task = {**data(tmp_path / "a", rows), "chat_template": False}
    report = check(config(task=task, rewards=[{"type": "math_verify", "require_box": True}]))
    assert [(trial.score_of_answer, trial.score_of_empty) for trial in report.trials] == [(1.0, 0.0)] * 3
    assert report.trials[0].answer.startswith("\\boxed{\\frac")
    assert report.trials[0].parts == {"math_verify": 1.0}
    useless = check(config(task=task, rewards=[{"type": "regex", "pattern": "never", "compare": False}]))
    assert "score no more than an empty completion" in messages(useless, "rewards", "warning")


def test_answers_that_cannot_be_graded_are_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}=", "answer": "no number"} for number in range(40)]
    task = {**data(tmp_path / "a", rows), "chat_template": False}
    report = check(config(task=task, rewards=[{"type": "numeric"}]))
    assert "no answer of the first 24 rows can be graded (no score: 'no number')" in messages(report, "rewards")


def test_a_small_data_set_is_a_warning(tmp_path: Path) -> None:
    task = {**data(tmp_path / "a", digits(20)), "chat_template": False}
    report = check(config(task=task))
    assert report.ok
    assert "fewer than one step takes" in messages(report, "sampling.prompts_per_step", "warning")
    assert "are held out" in messages(report, "evaluation.prompts", "warning")


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1 << 30, 1 << 30, 1 << 20))
    assert "1 MiB are free" in messages(check(config(), deep=False), "checkpoint.keep")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1 << 30, 1 << 30, 30 << 20))
    report = check(config(), deep=False)
    assert report.ok
    assert "keep fewer or free some space" in messages(report, "checkpoint.keep", "warning")


def test_the_estimate_by_hand() -> None:
    found = estimate(
        config(optimiser={"steps": 100, "minibatches_per_step": 2}), inspect("builtin:countdown-tiny"), None
    )
    assert (found.updates, found.completions, found.max_tokens) == (200, 51_200, 819_200)
    assert found.evaluation_completions == 6 * 64 * 17  # steps 0, 20, 40, 60, 80, 100; 16 samples and a greedy one
    assert found.parameters == found.trained_parameters
    assert found.free_disk_bytes is None


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[task]\ntype = "split_sum"\n')
    assert main(["check", str(path), "--json", "--quick"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    path.write_text("[sampling]\nmax_prompt_tokens = 5\n")
    assert main(["check", str(path)]) == 1
    said = capsys.readouterr().out
    assert "has 7 tokens and 5 are allowed; raise the limit to 7" in said
    assert said.endswith("not ready\n")
    path.write_text("[sampling]\ntemperature = -1\n")
    assert main(["check", str(path), "--json"]) == 2
    assert "sampling.temperature" in capsys.readouterr().err


def test_no_grading_process_is_left_behind(tmp_path: Path) -> None:
    before = children()
    check(config(task={**data(tmp_path / "a", digits(40)), "chat_template": False}))
    assert children() == before


def children() -> set[int]:
    """Return the process ids of our live children."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found
