"""From what is typed to the members of a sweep: which runs there are, what is refused and what it says."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.config import RunConfig, load
from webapp.runs.forms import RunForm
from webapp.runs.models import Run, State, Worker
from webapp.runs.sweeps.axes import MAX_MEMBERS, Axes, Parameter, read_seeds, read_values, short_names, write_seeds
from webapp.runs.sweeps.duration import duration_of, tokens_of
from webapp.runs.sweeps.form import read_typed, write_axes
from webapp.runs.sweeps.plan import Plan, Typed, plan

pytestmark = pytest.mark.django_db


def planned(config: RunConfig | None = None, *, presets=(), seeds="", **settings: str) -> Plan:
    rows = tuple((index, path.replace("__", "."), values) for index, (path, values) in enumerate(settings.items()))
    return plan(RunForm.of(config or RunConfig()), Typed(True, tuple(presets), seeds, rows))


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0,1,2", (0, 1, 2)), ("0-4", (0, 1, 2, 3, 4)), (" 7 , 0 - 1\n3", (7, 0, 1, 3)), ("1,1,1-2", (1, 2)), ("", ())],
)
def test_seeds_are_a_list_with_ranges(text, seeds):
    assert read_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "said"),
    [("x", "“x” is no seed"), ("3-1", "write 1-3"), ("1.5", "no seed"), ("-1", "no seed"), ("0-99999", "at most")],
)
def test_what_is_no_list_of_seeds_is_told(text, said):
    with pytest.raises(ValueError, match=said):
        read_seeds(text)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 40), unique=True, max_size=20))
def test_seeds_are_read_as_they_are_written(seeds):
    assert read_seeds(write_seeds(tuple(seeds))) == tuple(seeds)


def test_values_keep_their_order_once():
    assert read_values("3e-5, 1e-5,\n3e-5 ;on") == ("3e-5", "1e-5", "on")


def test_names_are_as_short_as_they_can_be_told_apart():
    paths = ("optimiser.learning_rate", "sampling.temperature", "evaluation.temperature")
    assert list(short_names(paths).values()) == ["learning_rate", "sampling.temperature", "evaluation.temperature"]


def test_objectives_times_values_times_seeds():
    found = planned(load({"name": "mine"}), presets=("dapo",), seeds="0-2", optimiser__learning_rate="1e-5, 3e-5")
    assert found.ready
    assert (found.count, len(found.members)) == (12, 12)
    seen = {(m.config.objective.preset, m.config.optimiser.learning_rate, m.config.seed) for m in found.members}
    assert seen == {(p, rate, seed) for p in ("grpo", "dapo") for rate in (1e-5, 3e-5) for seed in (0, 1, 2)}
    assert found.members[0].name == "mine · grpo · learning_rate=1e-5 · seed 0"
    assert all(member.config.name == member.name for member in found.members)
    assert len({member.name for member in found.members}) == 12


def test_without_seeds_the_form_s_own_counts():
    assert [m.config.seed for m in planned(load({"seed": 5}), presets=("dapo",)).members] == [5, 5]


def test_the_present_objective_keeps_its_edits_and_stands_beside_its_preset():
    edited = load({"objective": {"preset": "dapo", "parts": [{"type": "ppo_clip", "clip_high": 0.5}]}})
    found = planned(edited, presets=("dapo", "grpo"))
    high = {
        m.coordinates.objective: next(p.clip_high for p in m.config.objective.parts if p.type == "ppo_clip")
        for m in found.members
    }
    assert list(high) == ["dapo edited", "grpo", "dapo"]
    assert high["dapo edited"] == 0.5
    assert high["dapo"] == pytest.approx(0.28)


def test_a_preset_that_is_the_present_objective_is_no_second_entry():
    assert [m.coordinates.objective for m in planned(presets=("grpo", "dapo")).members] == ["grpo", "dapo"]


def test_parts_are_named_by_their_type_and_vary():
    found = planned(objective__parts__ppo_clip__clip_low="0.1, 0.3")
    lows = [next(p.clip_low for p in m.config.objective.parts if p.type == "ppo_clip") for m in found.members]
    assert lows == [0.1, 0.3]


def test_an_objective_without_the_setting_runs_once_for_each_seed_and_it_is_said():
    found = planned(presets=("entropy-bonus",), seeds="0,1", objective__parts__entropy_bonus__coefficient="0.3, 0.6")
    by_objective = [m.coordinates.objective for m in found.members]
    assert (by_objective.count("grpo"), by_objective.count("entropy-bonus")) == (2, 4)
    assert "GRPO has no objective.parts.entropy_bonus.coefficient" in found.notes[0]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("objective.parts.no_such.x", "choose one of the list"),
        ("optimizer.learning_rate", "did you mean optimiser.learning_rate"),
        ("seed", "own list"),
        ("name", "by themselves"),
        ("model.source", "No objective"),
    ],
)
def test_a_setting_that_none_has_is_refused(path, said):
    found = plan(RunForm.of(RunConfig()), Typed(True, rows=((3, path, "1, 2"),)))
    assert said in found.errors["sweep.parameters.3.path"]
    assert not found.members


def test_a_row_needs_both_halves_and_stands_once():
    rows = ((0, "optimiser.steps", ""), (1, "", "1"), (2, "optimiser.beta1", "0"), (3, "optimiser.beta1", "0.5"))
    found = plan(RunForm.of(RunConfig()), Typed(True, rows=(*rows, (4, "", " "))))
    assert set(found.errors) == {"sweep.parameters.0.values", "sweep.parameters.1.path", "sweep.parameters.3.path"}


def test_a_wrong_value_is_told_beside_it_and_with_the_members_it_stops():
    found = planned(presets=("dapo",), optimiser__learning_rate="1e-5, 7")
    assert not found.ready
    assert not found.members
    assert found.errors["sweep.parameters.0.values"].startswith("7: Must be")
    (fault,) = found.faults
    assert fault.members == ["grpo · learning_rate=7", "dapo · learning_rate=7"]
    assert fault.label == "Optimiser › Learning rate"


def test_a_rule_across_fields_names_its_members():
    found = planned(optimiser__minibatches_per_step="1, 3, 4")
    (fault,) = found.faults
    assert "32 prompts per step do not divide into 3" in fault.text
    assert fault.members == ["minibatches_per_step=3"]


def test_choices_and_switches_vary():
    found = planned(optimiser__schedule="linear, cosine", evaluation__greedy="yes, off")
    seen = [(m.config.optimiser.schedule, m.config.evaluation.greedy) for m in found.members]
    assert seen == [("linear", True), ("linear", False), ("cosine", True), ("cosine", False)]
    assert "schedule" in planned(optimiser__schedule="square").faults[0].label.lower()


def test_too_many_are_refused_before_any_is_made():
    found = planned(seeds="0-99", optimiser__beta1="0.1, 0.2, 0.3")
    assert found.count == 300
    assert f"at most {MAX_MEMBERS}" in found.errors["sweep"]
    assert found.members == []


def test_the_fields_are_read_as_axes_are_written():
    axes = Axes(presets=("dapo",), seeds=(0, 1, 2, 9), parameters=(Parameter(path="a.b", values=("1", "2")),))
    typed = read_typed(write_axes(axes))
    assert (typed.on, typed.presets, typed.seeds) == (True, ("dapo",), "0-2, 9")
    assert typed.parameters == [(0, "a.b", ("1", "2"))]


def test_time_is_told_by_earlier_runs_of_the_model(alice):
    config = RunConfig()
    assert duration_of([config], 3).known == 0
    end = timezone.now()
    for minutes in (10, 20, 30):
        Run.objects.create(
            owner=alice,
            name="x",
            config=config.model_dump(mode="json"),
            model=config.model.source,
            state=State.FINISHED,
            attempt=1,
            started_at=end - timedelta(minutes=minutes),
            ended_at=end,
        )
    Worker.objects.create(name="w", host="h", slots=2)
    told = duration_of([config], 3)
    assert told.tokens == 3 * tokens_of(config)
    assert told.seconds == pytest.approx(3 * 1200)
    assert (told.known, told.slots, told.wall) == (3, 2, pytest.approx(1800))
    longer = load({"optimiser": {"steps": 320}, "evaluation": {"every_steps": 0}})
    assert duration_of([longer], 1).seconds > told.seconds / 3
