"""The data set task: which rows, which side of the split, which prompt."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from trainer.config import load
from trainer.errors import ConfigError
from trainer.tasks.base import Row
from trainer.tasks.dataset import Dataset


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbers(*span: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{number}+1?", "answer": number + 1} for number in range(*span)]


def keys(rows: Any) -> set[str]:
    return {row.key for row in rows}


def test_the_sides_share_no_problem_and_cover_all(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    task = Dataset(path=write(tmp_path / "a", numbers(1000)), split_seed=seed, held_out=0.2)
    train, held_out = task.rows("train", seed), task.rows("held_out", seed)
    assert not keys(train) & keys(held_out)
    assert len(train) + len(held_out) == 1000
    assert 130 < len(held_out) < 270  # five standard deviations
    assert task.rows("train", seed) == train
    assert [row.key for row in task.rows("train", seed + 1)] != [row.key for row in train]
    assert keys(task.rows("train", seed + 1)) == keys(train)


def test_appended_rows_move_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    task = Dataset(path=write(path, numbers(300)))
    before = keys(task.rows("held_out", 0)), keys(task.rows("train", 0))
    write(path, numbers(400))
    after = keys(task.rows("held_out", 0)), keys(task.rows("train", 0))
    assert before[0] <= after[0]
    assert before[1] <= after[1]
    assert sum(map(len, after)) == 400


def test_the_same_problem_stays_on_one_side_and_repetitions_are_dropped(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{number}", "answer": answer} for number in range(40) for answer in ("a", "b", "a")]
    task = Dataset(path=write(tmp_path / "a", rows), held_out=0.5)
    train, held_out = task.rows("train", 0), task.rows("held_out", 0)
    assert len(train) + len(held_out) == 80
    assert len(keys(train) | keys(held_out)) == 80
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}


def test_a_number_of_held_out_rows_and_a_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a", numbers(100))
    assert len(Dataset(path=path, held_out_rows=7).rows("held_out", 0)) == 7
    task = Dataset(path=path, max_rows=10, held_out_rows=1000)
    assert (len(task.rows("train", 0)), len(task.rows("held_out", 0))) == (1, 9)


def test_template_and_system_make_the_conversation_and_the_plain_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [{"q": "{x} {prompt} 1", "a": "1"}, {"q": "2", "a": "2"}, {"q": " ", "a": "3"}])
    task = Dataset(path=path, prompt_column="q", answer_column="a", template="Q: {prompt}\nA:", system="Be brief.")
    rows = {row.answer: row for row in [*task.rows("train", 0), *task.rows("held_out", 0)]}
    assert set(rows) == {"1", "2"}  # the blank prompt is left out
    assert rows["1"].prompt == "Be brief.\n\nQ: {x} {prompt} 1\nA:"
    assert task.messages(rows["1"]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: {x} {prompt} 1\nA:"},
    ]
    assert task.chat
    assert not Dataset(chat_template=False).chat


def test_conversations_may_be_the_prompt(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "said already"},
    ]
    other = [{"role": "user", "content": "V"}]
    path = write(tmp_path / "a", [{"prompt": turns, "answer": "1"}, {"prompt": other, "answer": "2"}])
    task = Dataset(path=path, system="not used where there is one", template="<{prompt}>")
    rows = {row.answer: row for row in [*task.rows("train", 0), *task.rows("held_out", 0)]}
    assert task.messages(rows["1"]) == [{"role": "system", "content": "S"}, {"role": "user", "content": "<U>"}]
    assert task.messages(rows["2"])[-1] == {"role": "user", "content": "<V>"}


def test_faults_name_the_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a", numbers(10))
    for changes, field, sentence in [
        ({"path": ""}, "task.path", "choose a data set"),
        ({"path": str(tmp_path / "none")}, "task.path", "there is no"),
        ({"path": "hub:a/b"}, "task.path", "must read hub:ORG/NAME@REVISION:SPLIT"),
        ({"prompt_column": "question"}, "task.prompt_column", "no column 'question'; the columns are prompt, answer"),
        ({"answer_column": "label"}, "task.answer_column", "no column 'label'; the columns are prompt, answer"),
    ]:
        for look in (lambda task: task.check(), lambda task: task.rows("train", 0)):
            with pytest.raises(ConfigError, match=sentence) as caught:
                look(Dataset(**{"path": path, **changes}))
            assert caught.value.field == field
    with pytest.raises(ConfigError, match="no row with a filled"):
        Dataset(path=write(tmp_path / "b", [{"prompt": "1", "answer": None}])).rows("train", 0)
    with pytest.raises(ConfigError, match="one problem only"):
        Dataset(path=write(tmp_path / "c", numbers(1))).rows("train", 0)
    with pytest.raises(ConfigError, match=r"task.*template: the template must contain \{prompt\}"):
        load({"task": {"type": "dataset", "template": "no place"}})


def test_only_declared_roots_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    write(tmp_path / "root" / "in", numbers(10))
    outside = write(tmp_path / "out", numbers(10))
    (tmp_path / "root" / "link").symlink_to(outside)
    monkeypatch.setenv("ISENTROPE_DATASET_ROOTS", str(tmp_path / "root"))
    assert len(Dataset(path="in").rows("train", 0)) > 0
    for path in (outside, "../out", "link"):
        with pytest.raises(ConfigError, match="under a declared root"):
            Dataset(path=path).rows("train", 0)


@pytest.mark.parametrize(
    ("reference", "completion", "right"),
    [
        ("72", "So 8 * 9 = \\boxed{72}.", True),
        ("She has 3. #### 1,072", "that is 1072", True),
        ("1072.0", "\\boxed{1,072}", True),
        ("\\frac{1}{2}", "\\boxed{\\frac{1}{2}}", True),
        ("Paris", " Paris\n", True),
        ("72", "\\boxed{72} or \\boxed{73}", False),
        ("72", "", False),
        ("72", "172", False),
    ],
)
def test_what_counts_as_right(reference: str, completion: str, right: bool) -> None:
    assert Dataset().score(Row("k", "p", reference), completion) == float(right)
