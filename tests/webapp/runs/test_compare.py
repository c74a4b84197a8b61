"""Runs beside each other: settings that differ, figures, prompts in common."""

from __future__ import annotations

import random

import pytest

from tests.fabricate import fabricate_run, sums, write_rollouts
from trainer.config import RunConfig
from webapp.runs.comparison import COLOURS, colours, differences, flatten, metrics, shared_prompts, summary
from webapp.runs.models import Event, Run

pytestmark = pytest.mark.django_db


def make(owner, name: str, run_id: str = "", **values) -> Run:
    more = {"id": run_id} if run_id else {}
    return Run.objects.create(
        owner=owner, name=name, config=RunConfig.model_validate(values).model_dump(mode="json"), **more
    )


def rows(*runs: Run) -> dict[str, list[str]]:
    return {row.key: row.values for row in differences(runs) if row.differs}


def test_only_what_differs_differs(alice):
    a = make(alice, "a", optimiser={"learning_rate": 1e-4})
    b = make(alice, "b", optimiser={"learning_rate": 2e-4}, model={"lora": {"enabled": True}})
    assert rows(a, b) == {"optimiser.learning_rate": ["0.0001", "0.0002"], "model.lora.enabled": ["off", "on"]}
    assert len(differences([a, b])) > 30


def test_parts_are_matched_by_type_and_not_by_place(alice):
    a = make(alice, "a", rewards=[{"type": "task"}, {"type": "exact", "weight": 2}])
    b = make(alice, "b", rewards=[{"type": "exact", "weight": 3}, {"type": "task"}])
    assert rows(a, b) == {"rewards.exact.weight": ["2", "3"]}


def test_a_part_that_one_run_lacks_is_a_dash(alice):
    found = rows(make(alice, "a"), make(alice, "b", objective={"preset": "entropy-bonus"}))
    assert found["objective.preset"] == ["grpo", "entropy-bonus"]
    assert found["objective.parts.entropy_bonus.coefficient"] == ["–", "0.01"]


def test_configs_of_any_age_can_be_flattened():
    assert flatten({"a": [1, 2], "b": None, "c": {}, "d": [{"type": "x"}]}) == {"a": "1, 2", "b": "", "d.x": "on"}


def test_colours_are_stable_and_distinct(alice):
    runs = [make(alice, str(index)) for index in range(8)]
    seen = colours(runs)
    assert sorted(seen.values()) == list(range(1, COLOURS + 1))
    assert colours(runs[::-1]) == seen
    assert all(colours([run])[run.pk] in range(1, COLOURS + 1) for run in runs)


def test_the_summary_marks_the_highest(alice):
    runs = [make(alice, name) for name in "abc"]
    for run, reward in zip(runs, (0.2, 0.9, None), strict=True):
        run.summary = (
            {"evaluation/pass@16": 0.5} if reward is None else {"reward/mean": reward, "evaluation/pass@16": 0.5}
        )
    found = {
        name: (values, best) for name, values, best in summary(runs, ["reward/mean", "evaluation/pass@16", "grad/norm"])
    }
    assert found == {"reward/mean": ([0.2, 0.9, None], 1), "evaluation/pass@16": ([0.5, 0.5, 0.5], None)}


def test_metrics_come_in_the_order_people_read_them(alice):
    run = make(alice, "a")
    run.summary = dict.fromkeys(
        ["grad/norm", "evaluation/pass@16", "evaluation/pass@2", "entropy/mean", "reward/mean"], 1.0
    )
    assert metrics([run]) == ["reward/mean", "entropy/mean", "evaluation/pass@2", "evaluation/pass@16", "grad/norm"]


def record(run: Run, step: int, keys: list[str]) -> None:
    drawn = sums(random.Random(step), step, groups=len(keys), samples=2)
    for row in drawn:
        row["row_key"] = keys[row["group"]]
        row["prompt"] = f"prompt {row['row_key']}"
    write_rollouts(run.folder.rollout_file(step), drawn)
    data = {"path": "", "completions": len(drawn), "tokens": 1, "bytes": 1}
    seq = run.events.count() + 1
    Event.objects.create(
        run=run, seq=seq, attempt=1, step=step, type="rollouts", time="2026-01-01T00:00:00Z", data=data
    )


def test_prompts_in_common_are_found(alice):
    a, b, c = (make(alice, name) for name in "abc")
    record(a, 1, ["p", "q"])
    record(a, 2, ["q", "r"])
    record(b, 5, ["q", "z"])
    record(c, 9, ["q", "r"])
    found = shared_prompts([a, b, c])
    assert [(one["key"], one["prompt"]) for one in found] == [("q", "prompt q"), ("r", "prompt r")]
    assert found[0]["steps"] == {a.pk: [1, 2], b.pk: [5], c.pk: [9]}


def test_a_rollout_file_that_is_gone_or_broken_is_passed_over(alice):
    a, b = make(alice, "a"), make(alice, "b")
    record(a, 1, ["p"])
    record(b, 1, ["p"])
    record(b, 2, ["p"])
    a.folder.rollout_file(1).unlink()
    b.folder.rollout_file(2).write_bytes(b"PAR1 broken")
    assert shared_prompts([a, b]) == []


def test_the_page_shows_both(login, alice, bob):
    a, b = fabricate_run(alice, steps=22, name="left"), fabricate_run(bob, steps=25, name="right")
    b.config["optimiser"]["learning_rate"] = 0.123
    b.save()
    page = login(alice).get(f"/runs/compare/?runs={a.pk},{b.pk},nothing").content.decode()
    assert "left" in page
    assert "0.123" in page
    assert "1 difference<" in page
    answer = login(alice).get(f"/runs/compare/rollouts/?runs={a.pk},{b.pk}").json()
    assert answer["prompts"]
    assert set(answer["prompts"][0]["steps"]) == {a.pk, b.pk}


def test_the_page_without_runs_says_what_to_do(login, alice):
    assert "Nothing to compare yet." in login(alice).get("/runs/compare/").content.decode()


def test_strangers_are_sent_to_sign_in(client, alice):
    assert client.get("/runs/compare/").status_code == 302
    assert client.get("/runs/compare/rollouts/").status_code == 302
