"""The What-if task: answers beside the run, one sentence for everything that goes wrong."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from tests.trainer.whatif.test_whatif import four_tokens
from trainer.objectives import PRESETS, ObjectiveConfig
from webapp.runs import whatif
from webapp.runs.models import Run
from workers.whatif import compute

pytestmark = pytest.mark.django_db

CLIP_COV = ObjectiveConfig(preset="clip-cov")


@pytest.fixture
def run(alice, valkey_server) -> Run:
    run = Run.objects.create(owner=alice, name="four tokens", config={})
    four_tokens(run.folder.rollout_file(3))
    return run


def ask(run: Run, objective: ObjectiveConfig | None = None, step: int = 3) -> bytes | dict:
    """Ask as the page does, and let a worker answer."""
    asked = whatif.question(run, step, objective)
    whatif.answer(run, asked)
    compute(run.pk, step, asked.key, asked.objective)
    return whatif.answer(run, asked)


def test_the_table_holds_every_preset(run):
    found = json.loads(ask(run))
    assert [row["preset"] for row in found["rows"]] == ["grpo", *PRESETS]
    assert found["facts"] | {"completions": 2, "of": 2, "tokens": 4, "moments": False} == found["facts"]
    assert not list(run.folder.path.glob("whatif/.*"))


def test_one_objective_brings_its_tokens(run):
    found = ask(run, CLIP_COV)
    header = json.loads(found[4 : 4 + int.from_bytes(found[:4], "little")])
    assert header["row"]["preset"] == "clip-cov"
    assert {name: spec["length"] for name, spec in header["columns"].items()} == dict.fromkeys(
        ("weight", "entropy_weight", "kind", "own_kind"), 4
    )


def test_progress_shows_the_rows_so_far(run, monkeypatch):
    seen = []
    monkeypatch.setattr(whatif, "say", lambda run_id, key, **state: seen.append(state))
    ask(run)
    assert [state["done"] for state in seen[1:]] == list(range(1, len(PRESETS) + 2))
    assert seen[5]["rows"][4]["preset"] == list(PRESETS)[3]


def test_an_answer_is_computed_once(run, monkeypatch):
    ask(run, CLIP_COV)
    monkeypatch.setattr("trainer.whatif.read", lambda path: pytest.fail("read again"))
    ask(run, CLIP_COV)


def test_another_rollout_file_or_setting_is_another_question(run):
    first = whatif.question(run, 3, CLIP_COV).key
    share = ObjectiveConfig(preset="clip-cov", parts=[{"type": "clip_cov", "share": 0.5}])
    assert whatif.question(run, 3, share).key != first
    os.utime(run.folder.rollout_file(3), ns=(1, 1))
    assert whatif.question(run, 3, CLIP_COV).key != first


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SoftTimeLimitExceeded(), "longer than"),
        (MemoryError(), "Memory ran out"),
        (RuntimeError("odd"), "RuntimeError: odd"),
        (FileNotFoundError(), "no longer there"),
    ],
)
def test_failures_are_sentences(run, monkeypatch, error, said):
    def fail(path):
        raise error

    monkeypatch.setattr("trainer.whatif.read", fail)
    found = ask(run, CLIP_COV)
    assert found["state"] == "failed"
    assert said in found["problem"]


def test_what_cannot_be_computed_names_the_statistic(run):
    found = ask(run, ObjectiveConfig(preset="ucas"))
    assert found["state"] == "failed"
    assert "logsumexp" in found["problem"]


def test_a_broken_file_is_named(run):
    run.folder.rollout_file(3).write_bytes(b"nothing of the kind")
    assert "step-00000003.parquet cannot be read" in ask(run)["problem"]


def test_a_deleted_run_leaves_nothing(run):
    key = whatif.question(run, 3, None).key
    shutil.rmtree(run.folder.path)
    compute(run.pk, 3, key, None)
    assert not run.folder.path.exists()


def test_old_answers_make_room(run, monkeypatch):
    monkeypatch.setattr(whatif, "KEPT", 2)
    for preset in ("grpo", "clip-cov", "dapo"):
        ask(run, ObjectiveConfig(preset=preset))
    assert len(list((run.folder.path / "whatif").iterdir())) == 2
