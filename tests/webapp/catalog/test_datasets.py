"""Datasets: uploaded, looked at in a process of their own, shown as text, deleted when nobody needs them."""

from __future__ import annotations

import json
import random
import string

import pyarrow
import pyarrow.parquet
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from trainer.config import RunConfig
from webapp.catalog.models import Dataset
from webapp.catalog.tables import check_for, guess, histogram, sample, table
from webapp.runs.models import Run, State

pytestmark = pytest.mark.django_db
URL = "/catalog/datasets/"
ROWS = [{"question": "1+1?", "answer": 2}, {"question": "2+3?", "answer": 5}, {"question": "4+4?", "answer": 8}]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def send(client, content: bytes, name: str = "sums", file: str = "x.jsonl", **headers):
    return client.post(URL, {"name": name, "file": SimpleUploadedFile(file, content)}, **headers)


def left_behind(settings) -> list[str]:
    return [path.name for path in settings.DATASETS_ROOT.iterdir()] if settings.DATASETS_ROOT.exists() else []


def test_an_upload_is_kept_and_understood(login, alice, settings):
    response = send(login(alice), jsonl(ROWS))
    found = Dataset.objects.get()
    assert response["Location"] == f"{URL}{found.pk}/"
    assert (found.name, found.owner, found.format, found.rows) == ("sums", alice, "jsonl", 3)
    assert (found.prompt_column, found.answer_column) == ("question", "answer")
    assert found.file.read_bytes() == jsonl(ROWS)
    assert found.bytes == len(jsonl(ROWS))
    assert found.stats["checks"]["answer"] == "numeric"
    assert left_behind(settings) == [found.path]


def test_parquet_and_csv_are_told_by_content(login, alice, tmp_path):
    path = tmp_path / "t"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    send(login(alice), path.read_bytes(), name="p", file="wrong.csv")
    send(login(alice), b'prompt,answer\n"a, b",1\nc,2\n', name="c", file="wrong.parquet")
    assert dict(Dataset.objects.values_list("name", "format")) == {"p": "parquet", "c": "csv"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "file"),
        (b"   \n", "is empty"),
        (b'{"a": 1}\nnonsense\n', "line 2 is not JSON"),
        (b"[1, 2]", "one JSON object a line"),
        (b"PK\x03\x04zip", "compressed"),
        (b"\x7fELF\x00\x00\x00", "neither text nor Parquet"),
        (b"PAR1 not really PAR1", "broken Parquet"),
        (b"prompt,answer\n1,2,3\n", "3 cells for 2 columns"),
        (b'{"a": "' + b"x" * (2 << 20) + b'"}', "longer than"),
        (b'{"a": ' + b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_table_is_refused_and_leaves_nothing(content, says, login, alice, settings):
    response = send(login(alice), content, HTTP_X_REQUESTED_WITH="XMLHttpRequest")
    assert response.status_code == 422
    assert says in response.content.decode()
    assert not Dataset.objects.exists()
    assert left_behind(settings) == []


def test_a_file_above_the_limit_is_refused(login, alice, settings):
    settings.DATASET_MAX_BYTES = 1 << 20
    response = send(login(alice), jsonl(ROWS) * 20_000)
    assert response.status_code == 422
    assert "larger than 1 MiB" in response.content.decode()
    assert left_behind(settings) == []


def test_names_are_given_once(login, alice, bob, settings):
    send(login(alice), jsonl(ROWS), name="Sums")
    response = send(login(bob), jsonl(ROWS), name="sUMS")
    assert "There is a dataset named" in response.content.decode()
    assert len(left_behind(settings)) == 1


def test_without_a_name_the_file_gives_it(login, alice):
    send(login(alice), jsonl(ROWS), name=" ", file="my sums.jsonl")
    assert Dataset.objects.get().name == "my sums"


def test_viewers_may_look_and_not_touch(login, alice, charlie):
    send(login(alice), jsonl(ROWS))
    found = Dataset.objects.get()
    client = login(charlie)
    assert client.get(f"{URL}{found.pk}/").status_code == 200
    assert send(client, jsonl(ROWS), name="mine").status_code == 403
    assert client.post(f"{URL}{found.pk}/delete/").status_code == 403
    assert (
        client.post(f"{URL}{found.pk}/columns/", {"prompt_column": "question", "answer_column": "answer"}).status_code
        == 403
    )
    assert Dataset.objects.count() == 1


def test_hostile_cells_and_columns_are_shown_as_text(login, alice):
    evil = "<script>alert(1)</script>\x07\u202eevil\u202c\u200b\ud800 {{ request }}"
    send(login(alice), jsonl([{"<b>prompt</b>": evil, 'answer" onload="x': "<img src=x>"}] * 2))
    found = Dataset.objects.get()
    page = login(alice).get(f"{URL}{found.pk}/").content.decode()
    assert "<script>alert" not in page
    assert "<b>prompt" not in page
    assert "<img src=x>" not in page
    assert '" onload="x' not in page
    assert "\u202e" not in page
    assert "⟨U+202E⟩evil⟨U+202C⟩" in page
    assert "␇" in page
    assert "{{ request }}" in page


def test_long_cells_are_cut_and_random_bytes_do_no_harm(login, alice):
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)
    send(login(alice), jsonl([{"prompt": "x" * 32_000, "answer": "y"}] * 2), name="long")
    assert len(Dataset.objects.get().stats["preview"][0]["prompt"]) < 3000
    for index in range(8):
        junk = bytes(draw.choice((*b'{}[]",:\n', *range(256))) for _ in range(300))
        assert send(login(alice), junk, name=f"junk {index}").status_code in (302, 422)


def test_columns_are_mapped(login, alice):
    send(login(alice), jsonl([{"a": "x", "b": "y", "c": "z"}] * 2))
    found = Dataset.objects.get()
    assert not found.mapped
    client, url = login(alice), f"{URL}{found.pk}/columns/"
    for sent, says in (
        ({"prompt_column": "a", "answer_column": "zzz"}, "There is no column"),
        ({"prompt_column": "a", "answer_column": "a"}, "must be different"),
    ):
        response = client.post(url, sent)
        assert response.status_code == 422
        assert says in response.content.decode()
    client.post(url, {"prompt_column": "a", "answer_column": "c"})
    found.refresh_from_db()
    assert (found.prompt_column, found.answer_column) == ("a", "c")


def test_a_dataset_in_use_is_not_deleted(login, alice, settings):
    send(login(alice), jsonl(ROWS))
    found = Dataset.objects.get()
    config = RunConfig.model_validate({"task": {"type": "dataset", "path": str(found.file)}}).model_dump(mode="json")
    run = Run.objects.create(owner=alice, name="needs it", config=config, state=State.RUNNING)
    client = login(alice)
    client.post(f"{URL}{found.pk}/delete/")
    assert found.file.exists()
    assert "reads this dataset; stop it first" in client.get(f"{URL}{found.pk}/").content.decode()
    run.state = State.FINISHED
    run.save()
    client.post(f"{URL}{found.pk}/delete/")
    assert not Dataset.objects.exists()
    assert left_behind(settings) == []


def test_launch_with_this_fills_the_form(login, alice):
    send(login(alice), jsonl(ROWS))
    found = Dataset.objects.get()
    page = login(alice).get(f"/runs/new/?dataset={found.pk}").content.decode()
    assert str(found.file) in page
    assert 'name="task.prompt_column" value="question"' in page


def test_strangers_are_sent_to_sign_in(client, db):
    for url in (URL, "/catalog/models/", "/catalog/objectives/"):
        assert client.get(url).status_code == 302


def test_columns_are_guessed():
    assert guess(["id", "Question", "Answer"]) == ("Question", "Answer")
    assert guess(["foo", "bar"]) == ("foo", "bar")
    assert guess(["solution", "foo"]) == ("foo", "solution")
    assert guess(["foo", "bar", "baz"]) == ("", "")


def test_lengths_fall_into_bins():
    seed = random.randrange(2**32)
    print("seed", seed)
    lengths = [random.Random(seed + index).randrange(1, 5000) for index in range(500)]
    found = histogram(lengths)
    assert sum(found["counts"]) == 500
    assert found["counts"][min(lengths) // found["width"]] > 0
    assert len(found["counts"]) <= 24


def test_checks_fit_their_answers(tmp_path):
    words = ["".join(random.choices(string.ascii_lowercase, k=5)) for _ in range(9)]
    for cells, check in (
        ([1, 2.5, "3,000", "-4"], "numeric"),
        (["\\boxed{2}", "$x^2$", "7"], "math"),
        (words, "exact"),
        (["x" * 900] * 3, ""),
    ):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(jsonl([{"prompt": "p", "answer": cell} for cell in cells]))
        assert check_for(sample(path)["answer"]) == check
        assert table(path)["rows"] == len(cells)
