"""The new-run form: what it shows is what comes back, and every complaint stands at its field."""

from __future__ import annotations

import random
from typing import Literal

import pytest
from pydantic import BaseModel

from trainer.config import RunConfig
from trainer.objectives import PARTS, PRESETS
from trainer.rewards import REWARDS
from trainer.tasks import TASKS
from webapp.runs.configform import Leaf, Rows, bind, flatten, parse, read, shape_of, walk
from webapp.runs.forms import SHAPE, RunForm
from webapp.runs.trainable import untrainable

# What a part cannot be built without.
NEEDED = {"regex": {"pattern": r"\d+"}, "format": {}, "python": {}}
EXTRA = {"entrocraft": {"schedule": "drawn", "points": [(0.0, 1.25), (0.3, 0.1), (1.0, 2.0)]}}


def posted(config: RunConfig) -> RunForm:
    """Return the form after the browser sent back what it was shown."""
    return RunForm.posted(RunForm.of(config).data.items())


def changed(config: RunConfig, **fields: str) -> RunForm:
    data = RunForm.of(config).data | {name.replace("__", "."): value for name, value in fields.items()}
    return RunForm.posted(data.items())


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in untrainable()])
def test_every_preset_comes_back_equal(preset):
    config = RunConfig.model_validate({"objective": {"preset": preset}})
    form = posted(config)
    assert form.config == config
    assert not form.bound.find("objective").changed


def test_a_preset_that_cannot_be_trained_says_what_is_missing():
    for name, sentence in untrainable().items():
        form = RunForm.of(RunConfig()).swapped(f"preset:{name}")
        assert form.config is None
        missing = sentence.removeprefix("Cannot be trained yet: it takes ").removesuffix(".")
        assert missing in " ".join(form.errors.values())


@pytest.mark.parametrize("task", TASKS)
def test_every_task_comes_back_equal(task):
    config = RunConfig.model_validate({"task": {"type": task}})
    assert posted(config).config == config


@pytest.mark.parametrize("reward", REWARDS)
def test_every_reward_comes_back_equal(reward):
    config = RunConfig.model_validate(
        {"rewards": [{"type": "task"}, {"type": reward, "weight": 0.125, **NEEDED.get(reward, {})}]}
    )
    assert posted(config).config == config


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_an_objective_can_be_drawn(part):
    """Whether or not the part may be added to GRPO alone, its settings have inputs and texts."""
    shape = shape_of(PARTS[part])
    bound = bind(shape, {}, {}, {})
    assert [child.spec.name for child in bound.children] == [
        name for name in PARTS[part].model_fields if name != "type"
    ]


def test_drawn_points_come_back_equal():
    config = RunConfig.model_validate(
        {"objective": {"preset": "entrocraft", "parts": [{"type": "entrocraft", **EXTRA["entrocraft"]}]}}
    )
    form = posted(config)
    assert form.config == config
    assert form.bound.find("objective").changed


def test_random_numbers_come_back_to_the_last_bit():
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)
    for _ in range(30):
        values = {
            "optimiser": {"learning_rate": draw.uniform(1e-12, 1), "epsilon": 10 ** draw.uniform(-12, -2.1)},
            "sampling": {"temperature": draw.uniform(0.01, 10)},
            "model": {
                "lora": {
                    "enabled": draw.random() < 0.5,
                    "target_modules": draw.sample(["q_proj", "a b", "x,y", "k"], 2),
                }
            },
        }
        config = RunConfig.model_validate(values)
        assert posted(config).config == config


def test_text_keeps_its_lines_and_loses_no_spaces():
    config = RunConfig.model_validate(
        {"task": {"type": "dataset", "path": "x", "template": "\n  {prompt}\n\nAnswer: ", "system": " a\tb"}}
    )
    form = RunForm.of(config)
    # Browsers send lines apart with \r\n.
    sent = [(name, value.replace("\n", "\r\n")) for name, value in form.data.items()]
    assert RunForm.posted(sent).config == config


def test_empty_numbers_take_their_default():
    form = changed(RunConfig(), sampling__prompts_per_step="", optimiser__learning_rate=" ")
    assert form.config == RunConfig()


def test_an_unchecked_box_is_off():
    pairs = [*RunForm.of(RunConfig()).data.items(), ("evaluation.greedy", "off")]
    assert RunForm.posted(pairs).config.evaluation.greedy is False


def test_a_checkbox_counts_after_its_hidden_off():
    assert read([("a", "off"), ("a", "on")]) == {"a": "on"}


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("sampling.prompts_per_step", "many", "whole number"),
        ("sampling.samples_per_prompt", "2.5", "whole number"),
        ("optimiser.learning_rate", "7", "less than or equal to 1"),
        ("optimiser.learning_rate", "nan", "finite"),
        ("sampling.top_p", "0", "greater than 0"),
        ("task.held_out", "1", "less than 1"),
        ("rewards.0.weight", "1000", "less than or equal to 100"),
        ("objective.parts.1.clip_low", "-3", "greater than or equal to 0"),
        ("objective.preset", "magic", "no preset"),
        ("model.source", "", "at least 1 character"),
        ("model.dtype", "int3", "float32"),
        ("optimiser.minibatches_per_step", "5", "divisor of sampling.prompts_per_step"),
        ("resources.processes", "5", ""),
        ("model.lora.rank", "0", "greater than or equal to 1"),
    ],
)
def test_each_error_stands_at_its_field(field, text, says):
    form = changed(RunConfig(), **{field.replace(".", "__"): text})
    assert form.config is None
    assert len(form.errors) == 1
    place, sentence = next(iter(form.errors.items()))
    assert place == ("sampling.prompts_per_step" if field == "resources.processes" else field)
    assert says in sentence
    assert sentence.endswith(".")
    assert form.bound.find(place).error == sentence


def test_problems_name_their_fields_in_the_order_of_the_page():
    form = changed(RunConfig(), sampling__top_p="9", task__held_out="9", objective__parts__0__epsilon="9")
    assert [name for _, name, _ in form.problems] == [
        "Task › Held out",
        "Sampling › Top-p",
        "Objective › Parts › Group advantage › Epsilon",
    ]


def test_a_folded_group_opens_for_its_error():
    form = changed(RunConfig(), optimiser__beta1="2")
    group = form.section("optimiser")
    assert group.troubled
    assert group.open
    assert not RunForm.of(RunConfig()).section("optimiser").open


def test_rewards_are_added_and_removed():
    form = RunForm.of(RunConfig()).swapped("add:rewards:exact")
    assert [reward.type for reward in form.config.rewards] == ["task", "exact"]
    form = form.swapped("remove:rewards.0")
    assert [reward.type for reward in form.config.rewards] == ["exact"]
    assert "at least 1" in form.swapped("remove:rewards.0").errors["rewards"]


def test_rows_with_gaps_are_numbered_anew():
    data = {"rewards.rows": "2", "rewards.3.type": "exact", "rewards.7.type": "task", "rewards.7.weight": "2"}
    form = RunForm.posted(data.items())
    assert [(reward.type, reward.weight) for reward in form.config.rewards] == [("exact", 1.0), ("task", 2.0)]
    assert form.data["rewards.1.weight"] == "2"


def test_choosing_a_preset_starts_its_parts_anew():
    form = changed(RunConfig(), objective__parts__1__clip_low="0.1", name="kept")
    form = form.swapped("preset:entrocraft")
    assert form.config.objective == RunConfig.model_validate({"objective": {"preset": "entrocraft"}}).objective
    assert form.config.name == "kept"


def test_a_part_can_be_added_and_only_that_one_removed():
    form = RunForm.of(RunConfig()).swapped("add:objective.parts:entropy_bonus")
    added = next(index for index, part in enumerate(form.config.objective.parts) if part.type == "entropy_bonus")
    assert form.config.objective.parts != RunConfig().objective.parts
    path = next(iter(form.added_parts))
    assert form.data[f"{path}.type"] == "entropy_bonus"
    assert form.swapped(f"remove:{path}").config == RunConfig()
    assert added > 0


def test_another_task_brings_its_own_defaults_and_keeps_what_was_typed():
    typed = RunForm(RunForm.of(RunConfig()).data | {"task.type": "split_sum"})
    assert typed.swapped("swap:task:countdown").config.task == TASKS["split_sum"]()
    typed.data["task.held_out"] = "0.33"
    assert typed.swapped("swap:task:countdown").config.task.held_out == 0.33


@pytest.mark.parametrize(
    "op", ["add:nothing", "remove:", "remove:name", "preset:", "swap:name:x", "add:rewards:evil", "x"]
)
def test_operations_that_make_no_sense_do_no_harm(op):
    assert RunForm.of(RunConfig()).swapped(op).data is not None


def test_old_configs_open_with_their_errors():
    values = RunConfig().model_dump()
    values["optimiser"]["learning_rate"] = 44
    form = RunForm.of_values(values)
    assert form.data["optimiser.learning_rate"] == "44"
    assert "optimiser.learning_rate" in form.errors


def test_hostile_form_data_is_judged_and_not_believed():
    data = {f"rewards.{index}.type": "x" for index in range(5000)} | {
        "task.type": "../../etc",
        "objective.preset": "<script>",
    }
    form = RunForm.posted(data.items())
    assert form.config is None
    assert form.problems


def test_settings_of_an_unknown_kind_are_refused_when_the_form_is_built():
    class Odd(BaseModel):
        field: dict[str, set[int]] = {}

    with pytest.raises(TypeError, match="field"):
        shape_of(Odd)


def test_kinds_follow_from_types():
    class Kinds(BaseModel):
        whole: int = 1
        maybe: float | None = None
        switch: bool = True
        choice: Literal["a", 3] = "a"
        lines: list[str] = []
        numbers: list[float] = [1.5, 2]

    shape = shape_of(Kinds)
    assert [child.kind for child in shape.children] == ["integer", "number", "switch", "select", "words", "numbers"]
    for value in (Kinds(), Kinds(maybe=2.5, choice=3, lines=["x", "y z"], numbers=[], switch=False)):
        assert Kinds.model_validate(parse(shape, flatten(shape, value.model_dump()))) == value


def test_every_setting_of_a_run_is_on_the_form():
    paths = {path for path, node in walk(SHAPE) if isinstance(node, Leaf | Rows)}
    for path in (
        "seed",
        "model.lora.rank",
        "task.held_out",
        "rewards",
        "rewards.*.weight",
        "optimiser.beta2",
        "resources.gpus",
    ):
        assert path in paths
