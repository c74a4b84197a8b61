"""Prompts of a step: which rows, in which words, and what does not fit."""

from __future__ import annotations

import random
from collections import Counter

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.runs import make, metrics, small, train
from trainer.errors import ConfigError
from trainer.models import resolve
from trainer.objectives.rollouts.wordings import WORDINGS
from trainer.preflight import check
from trainer.prompts import Prompts, encode
from trainer.rewards.scoring import score_sample
from trainer.rewards.task import TaskReward
from trainer.rewards.template_form import TemplateFormReward
from trainer.tasks import Row
from trainer.tasks.countdown import Countdown
from trainer.tasks.dataset import Dataset
from trainer.template import PLAIN, Template, keeps


class Letters:
    """A tokenizer of characters, as far as prompts ask for one."""

    all_special_ids = (0,)

    def __init__(self, chat_template: str = "") -> None:
        self.chat_template = chat_template

    def __call__(self, texts, add_special_tokens: bool = True):
        one = isinstance(texts, str)
        ids = [[ord(letter) for letter in text] for text in ([texts] if one else texts)]
        return {"input_ids": ids[0] if one else ids}

    def apply_chat_template(self, messages, **options):
        text = "".join(f"[{turn['role']}]{turn['content']}" for turn in messages) + "[assistant]"
        return {"input_ids": [ord(letter) for letter in text]}


def text(ids) -> str:
    return "".join(map(chr, ids))


def prompts(context: int | None = None, names: tuple[str, ...] = (), **sampling) -> Prompts:
    part = {"type": "prompt_augmentation", "names": list(names)}
    sampling = {"max_prompt_tokens": 600} | sampling
    return Prompts(small(objective={"parts": [part]}, sampling=sampling), Letters(), context)


def test_there_are_thirteen_templates_and_all_hold_the_prompt():
    assert len(WORDINGS) == 13
    assert len({(one.text, one.system, one.opening) for one in WORDINGS.values()}) == 13
    for template in WORDINGS.values():
        assert template.words("a {prompt} {x}").count("a {prompt} {x}") == 1  # braces of the data are data
        assert "PROBLEM" in template.text_of("PROBLEM")


def test_words_of_a_chat_and_of_plain_text():
    template = Template("Solve: {prompt}", system="Be brief.", opening="Well,")
    task, rows = Dataset(), [Row("k", "1+1?", "2", {"messages": [{"role": "user", "content": "1+1?"}]})]
    assert text(encode(Letters("chat"), task, rows, template)[0]) == (
        "[system]Be brief.[user]Solve: 1+1?[assistant]Well,"
    )
    assert text(encode(Letters(), task, rows, template)[0]) == "Be brief.\n\nSolve: 1+1?\n\nWell,"
    assert text(encode(Letters(), task, rows)[0]) == "1+1?"
    own = [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert template.messages(own) == [
        {"role": "system", "content": "S\n\nBe brief."}, own[1], {"role": "user", "content": "Solve: b"},
    ]  # fmt: skip
    assert PLAIN.messages(own) == own


def test_a_prompt_is_worded_by_seed_step_and_group_alone():
    found = prompts()
    again = prompts()
    names = [found.asked(step, group, 5).template for step in range(1, 60) for group in range(8)]
    assert names == [again.asked(step, group, 5).template for step in range(1, 60) for group in range(8)]
    counted = Counter(names)
    assert set(counted) == set(WORDINGS)
    assert max(counted.values()) < 3 * len(names) / 13  # about equally often
    asked = found.asked(3, 1, 5)
    assert text(asked.ids) == asked.row.prompt == WORDINGS[asked.template].text_of(found.train[5].prompt)
    assert (asked.row.key, asked.row.answer) == (found.train[5].key, found.train[5].answer)
    assert {prompts(names=("plan", "check")).asked(1, group, 0).template for group in range(20)} == {"plan", "check"}


def test_without_templates_a_prompt_is_what_the_task_says():
    found = Prompts(small(), Letters(), None)
    asked = found.asked(1, 0, 3)
    assert (asked.row, asked.ids, asked.template) == (found.train[3], found.train_ids[3], "")


def test_a_template_that_makes_prompts_too_long_is_refused_before_the_run():
    with pytest.raises(ConfigError, match="in the template 'steps_boxed'") as error:
        prompts(names=("plain", "steps_boxed"), max_prompt_tokens=32)
    assert error.value.field == "sampling.max_prompt_tokens"
    with pytest.raises(ConfigError, match="leave the template out"):
        prompts(names=("think_tags",), context=100)


def test_the_form_says_so_before_the_run_too():
    config = small(objective={"preset": "prompt-augmentation"})
    found = [problem for problem in check(config).problems if problem.field == "sampling.max_prompt_tokens"]
    assert "in the template" in found[0].message
    pointless = check(small(rewards=[{"type": "task"}, {"type": "template_form"}]), deep=False).warnings
    assert ["prompt_augmentation" in one.message for one in pointless if one.field == "rewards"] == [True]


@given(step=st.integers(1, 50), waves=st.integers(1, 8), seed=st.integers(0, 1000))
def test_further_prompts_are_new_until_all_were_asked(step, waves, seed):
    found = object.__new__(Prompts)
    found.seed, found.per_step, found.train = seed, 4, [None] * random.Random(seed).randint(5, 40)
    rows = [row for wave in range(waves + 1) for row in found.of_step(step, wave)]
    assert all(0 <= row < len(found.train) for row in rows)
    if len(set(rows[:4])) == 4:  # the step's own may repeat where an epoch ends
        full = len(found.train) // 4 * 4
        assert len(set(rows[:full])) == min(full, len(rows))
    assert found.of_step(step, waves) == rows[-4:]
    assert found.of_step(step + 1) == [found._row(step * 4 + place) for place in range(4)]


@pytest.mark.parametrize(
    ("name", "completion", "kept"),
    [
        ("think_tags", "so</think><answer>4</answer>", True),  # the opening counts
        ("think_tags", "so<answer>4</answer></think>", False),
        ("boxed", "it is \\boxed{4}", True),
        ("boxed", "it is 4", False),
        ("plan", "add\nSolution: 2+2\nAnswer: 4", True),
        ("plan", "add\nAnswer: 4\nSolution: 2+2", False),
        ("plain", "", True),
    ],
)
def test_the_form_of_a_template(name, completion, kept):
    assert keeps(WORDINGS[name].form, completion) == kept


def test_the_form_is_paid_for_where_the_answer_is_right():
    task, form = Countdown(), TemplateFormReward(weight=0.5)
    right = {"digits": "128", "form": Template(asks=("1",)).form}
    answers = {"2+8+1": 1.5, "9": 0.0}
    for answer, reward in answers.items():
        assert score_sample(task, [TaskReward(), form], Row("k", "", "11", right), answer).reward == reward
    wrong_form = {"digits": "128", "form": Template(asks=("=",)).form}
    assert score_sample(task, [TaskReward(), form], Row("k", "", "11", wrong_form), "2+8+1").reward == 1.0
    assert score_sample(task, [TaskReward(), form], Row("k", "", "11", {"digits": "128"}), "2+8+1").reward == 1.5


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    """The tiny model with room for 700 tokens; letters are all one token to it."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    source = resolve("builtin:countdown-tiny").path
    model = GPT2LMHeadModel.from_pretrained(source)
    known = model.transformer.wpe.weight.data
    model.transformer.wpe = torch.nn.Embedding(700, known.shape[1])
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(known[torch.arange(700) % len(known)])
    model.config.n_positions = 700
    path = tmp_path_factory.mktemp("models") / "long"
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(source).save_pretrained(path)
    return path


def test_a_run_words_its_prompts_and_tells_rewards_and_entropy_by_template(tmp_path, long_model, monkeypatch):
    monkeypatch.setenv("ISENTROPE_MODEL_ROOTS", str(long_model.parent))
    config = small(
        model={"source": str(long_model)},
        objective={"preset": "prompt-augmentation"},
        rewards=[{"type": "task"}, {"type": "template_form", "only_if_right": False, "weight": 0.1}],
        sampling={"prompts_per_step": 6, "samples_per_prompt": 2, "max_prompt_tokens": 600},
        optimiser={"steps": 2},
        evaluation={"every_steps": 2, "prompts": 2, "samples_per_prompt": 1},
    )
    folder = make(tmp_path / "run", config)
    assert train(folder)[0] == "finished"
    seen = set()
    for step in (1, 2):
        rows, values = pq.read_table(folder.rollout_file(step)).to_pylist(), metrics(folder)[step]
        for group in range(6):
            (name,) = {row["template"] for row in rows if row["group"] == group}
            (prompt,) = {row["prompt"] for row in rows if row["group"] == group}
            key = next(row["row_key"] for row in rows if row["group"] == group)
            assert prompt == WORDINGS[name].text_of(f"{key}:")
            members = [row for row in rows if row["template"] == name]
            rewards = [row["reward"] for row in members]
            entropies = [value for row in members for value in row["entropy"]]
            assert values[f"template/{name}_reward"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)
            assert values[f"template/{name}_entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
            seen.add(name)
        assert values["reward/template_form"] <= 1
    assert len(seen) > 3
