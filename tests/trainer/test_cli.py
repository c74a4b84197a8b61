"""`python -m trainer`: one command from a TOML file to a run folder, and one sentence for everything that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.runs import ROOT, environment, events, make, small
from trainer.attempt import number, run_attempt
from trainer.cli import configured, main, value_of
from trainer.config import load, to_toml
from trainer.events import RunFolder
from trainer.objectives import PRESETS

EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_whole_config(path):
    config = load(path)
    assert config.name
    assert load_toml(to_toml(config)) == config


def load_toml(text: str):
    import tomllib

    return load(tomllib.loads(text))


def test_examples_show_presets_that_exist_and_no_task_twice_with_the_same():
    shown = [(load(path).task.type, load(path).objective.preset) for path in EXAMPLES]
    assert {preset for _, preset in shown} <= set(PRESETS)
    assert len(set(shown)) == len(shown)


def test_run_makes_a_folder_that_runs_and_cannot_be_made_twice(tmp_path, capfd):
    out = tmp_path / "run"
    arguments = ["run", str(ROOT / "examples/countdown.toml"), "--out", str(out), *settings(steps=2)]
    assert main(arguments) == 0
    folder = RunFolder(out)
    assert json.loads(folder.exit.read_text())["status"] == "finished"
    assert load(folder.config).optimiser.steps == 2
    shown = capfd.readouterr().out
    assert "step 2/2" in shown
    assert "reward" in shown
    assert main(arguments) == 2
    assert "holds a run already" in capfd.readouterr().err
    assert main([str(out)]) == 0  # a finished run resumes to its end at once
    assert [event["attempt"] for event in events(folder, "started")] == [1, 2]


def settings(**changes: object) -> list[str]:
    small = {"sampling.prompts_per_step": 2, "sampling.samples_per_prompt": 2, "evaluation.every_steps": 0}
    given = small | {f"optimiser.{name}": value for name, value in changes.items()}
    return [part for name, value in given.items() for part in ("--set", f"{name}={value}")]


def test_accelerate_launch_does_the_same(tmp_path):
    config = small(optimiser={"steps": 1}, evaluation={"every_steps": 0})
    folder = make(tmp_path, config)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "trainer"]
    done = subprocess.run([*command, str(tmp_path)], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(folder.exit.read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (["model.source=builtin:nonsense"], "model.source"),
        (["sampling.max_prompt_tokens=2"], "sampling.max_prompt_tokens"),
        (["sampling.max_completion_tokens=5000"], "sampling.max_completion_tokens"),
        (["model.lora.enabled=true", 'model.lora.target_modules=["nowhere"]'], "model.lora.target_modules"),
    ],
)
def test_what_is_wrong_is_one_sentence_in_exit_and_events(tmp_path, changes, field):
    out = tmp_path / "run"
    more = [part for change in changes for part in ("--set", change)]
    assert main(["run", str(ROOT / "examples/countdown.toml"), "--out", str(out), *settings(), *more]) == 1
    folder = RunFolder(out)
    ended = json.loads(folder.exit.read_text())
    assert (ended["status"], ended["field"]) == ("failed", field)
    assert ended["reason"].startswith(field)
    assert "\n" not in ended["reason"]
    assert events(folder, "failed")[0]["reason"] == ended["reason"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "/nowhere.toml"], "cannot read"),
        (["run", str(ROOT / "examples/countdown.toml"), "--set", "optimiser.steps"], "KEY=VALUE"),
        (["run", str(ROOT / "examples/countdown.toml"), "--set", "optimiser.steps=0"], "optimiser.steps"),
        (["run", str(ROOT / "examples/countdown.toml"), "--set", "sampling.samples_per_prompt.x=1"], "sampling"),
        (["run", str(ROOT / "examples/countdown.toml"), "--set", "optimiser.stepz=1"], "optimiser.stepz"),
    ],
)
def test_a_wrong_command_says_what_to_do_and_makes_nothing(tmp_path, capsys, arguments, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unforeseen_exception_is_a_failed_run_with_a_traceback_in_the_log(tmp_path, monkeypatch, capfd):
    from trainer.collect import Collector

    def broken(*_, **__):
        raise KeyError("surprise")

    monkeypatch.setattr(Collector, "collect", broken)
    folder = make(tmp_path, small(evaluation={"every_steps": 0}))
    assert run_attempt(tmp_path) == 1
    assert json.loads(folder.exit.read_text())["reason"].startswith("KeyError")
    assert "Traceback" in capfd.readouterr().err


def test_a_folder_without_a_config_is_no_run(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "config.json is missing" in capsys.readouterr().err


def test_attempts_are_counted_or_taken_from_the_supervisor(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    assert number(folder) == 1
    folder.events.write_text('{"seq": 9, "attempt": 4}\n')
    assert number(folder) == 5
    monkeypatch.setenv("ISENTROPE_ATTEMPT", "7")
    assert number(folder) == 7


def test_the_schema_is_printed_without_torch(tmp_path):
    code = "import sys; from trainer.cli import main; main(['schema']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "properties" in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("1e-4", 1e-4), ("true", True), ('["a"]', ["a"]), ("word", "word"), ("a=b", "a=b")]
)
def test_values_on_the_command_line_are_toml_or_text(text, value):
    assert value_of(text) == value


def test_changes_may_reach_into_a_file_of_either_kind(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(small().model_dump_json())
    assert configured(path, ["task.held_out=0.3"]).task.held_out == 0.3


def test_check_says_whether_a_config_would_train(tmp_path, capsys):
    example = str(ROOT / "examples/countdown.toml")
    assert main(["check", example]) == 0
    assert "ready to train" in capsys.readouterr().out
    assert main(["check", example, "--json", "--set", "sampling.max_prompt_tokens=2"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["field"] == "sampling.max_prompt_tokens"
    assert list(tmp_path.iterdir()) == []
