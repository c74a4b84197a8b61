"""The run page's addresses: what they answer, and to whom."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile

import pytest
from django.urls import reverse

from tests.fabricate import fabricate_run
from webapp.runs.models import Run, State

pytestmark = pytest.mark.django_db


@pytest.fixture
def run(alice, db):
    return fabricate_run(alice, steps=4, rewound=False, every=2)


def url(name: str, run: Run, *args: object) -> str:
    return reverse(f"runs:{name}", args=[run.pk, *args])


def test_page_shows_the_run(run, login, alice):
    page = login(alice).get(url("detail", run)).content.decode()
    assert run.name in page
    assert "4 / 100" in page
    assert 'data-chart="entropy"' in page
    assert "Entropy target" in page


def test_strangers_are_sent_to_sign_in(run, client):
    for name, *args in (
        ("detail",),
        ("series",),
        ("events",),
        ("rollouts",),
        ("rollout", 3),
        ("log",),
        ("checkpoint", 2),
        ("config",),
    ):
        assert client.get(url(name, run, *args)).status_code == 302


def test_unknown_run_is_not_found(login, alice, db):
    assert login(alice).get(reverse("runs:detail", args=["nothere1"])).status_code == 404


def test_page_has_no_inline_code(run, login, alice):
    page = login(alice).get(url("detail", run)).content.decode()
    assert "onclick=" not in page
    assert " style=" not in page
    assert page.count("<script>") == 0


@pytest.mark.parametrize("panel", ["header", "steering", "checkpoints", "timeline", "evaluation"])
def test_fragments_are_served_alone(run, login, alice, panel):
    response = login(alice).get(url("detail", run), {"panel": panel})
    assert response.status_code == 200
    assert b"<html" not in response.content


def test_hostile_name_failure_and_log_are_text(run, login, alice):
    evil = "<script>alert(1)</script>"
    Run.objects.filter(pk=run.pk).update(
        name=evil, failure=evil, failure_log=f"{evil}\n\x1b[31mhf_abcdefghijklmnopqrst", state=State.FAILED
    )
    page = login(alice).get(url("detail", run)).content.decode()
    assert evil not in page
    assert "\x1b" not in page
    assert "hf_abcdefghijklmnopqrst" not in page


def test_series_answers_points(run, login, alice):
    answer = login(alice).get(url("series", run), {"names": "entropy/mean,evaluation/greedy"}).json()
    assert set(answer["series"]) == {"entropy/mean", "evaluation/greedy"}


def test_series_refuses_nonsense(run, login, alice):
    assert login(alice).get(url("series", run), {"names": "a", "points": "many"}).status_code == 400


def test_events_come_as_lines_after_a_seq(run, login, alice):
    lines = login(alice).get(url("events", run), {"after": run.last_seq - 3}).content.decode().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [run.last_seq - 2, run.last_seq - 1, run.last_seq]
    assert json.loads(lines[-1])["type"] == "alert"


def test_unrecorded_step_says_so(run, login, alice):
    response = login(alice).get(url("rollout", run, 99))
    assert response.status_code == 404
    assert response.content == b"The rollouts of step 99 were not recorded."


def test_rollouts_are_cached_for_ever_under_their_version(run, login, alice):
    version = login(alice).get(url("rollouts", run)).json()["steps"][2]["version"]
    fixed = login(alice).get(url("rollout", run, 3), {"v": version})
    assert "immutable" in fixed["Cache-Control"]
    assert login(alice).get(url("rollout", run, 3), {"v": version - 1})["Cache-Control"] == "private, no-cache"
    again = login(alice).get(url("rollout", run, 3), headers={"If-None-Match": fixed["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_broken_rollout_file_is_one_sentence(run, login, alice):
    run.folder.rollout_file(3).write_bytes(b"PAR1 nonsense PAR1")
    response = login(alice).get(url("rollout", run, 3))
    assert response.status_code == 500
    assert b"step 3 cannot be read" in response.content


def test_log_is_clean_and_continues_at_its_offset(run, login, alice):
    response = login(alice).get(url("log", run))
    assert "step 1 reward 0.15" in response.content.decode()
    assert "hf_abcdef" not in response.content.decode()
    with run.folder.log.open("a") as file:
        file.write("next line\nhalf a li")
    more = login(alice).get(url("log", run), {"offset": response["X-Log-Next"]})
    assert more.content == b"next line\n"


def test_the_rollout_server_has_a_log_of_its_own(run, login, alice):
    client = login(alice)
    assert client.get(url("log", run), {"of": "server"}).content == b""
    run.folder.server_log.write_bytes(b"old\n" * 50_000 + b"\x1b[31mtoken=abcdefghijklmnop\n<b>half")
    found = client.get(url("log", run), {"of": "server"})
    assert found.content.endswith(b"old\ntoken=[removed]\n")
    assert len(found.content) < 70_000  # the end of it, not all
    assert found["Content-Type"].startswith("text/plain")
    assert "step 1 reward" in client.get(url("log", run), {"of": "trainer"}).content.decode()
    with run.folder.server_log.open("a") as file:
        file.write(" a line</b>\n")
    more = client.get(url("log", run), {"of": "server", "offset": found["X-Log-Next"]})
    assert more.content == b"<b>half a line</b>\n"
    for wrong in ("../config.json", "", "both"):
        assert client.get(url("log", run), {"of": wrong}).status_code == 400


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({"enabled": True}, "it starts with the run"),
        ({"enabled": True, "address": "gpu7:7000"}, "server at gpu7:7000 was not started by this run"),
        ({"enabled": False, "address": "gpu7:7000"}, None),
    ],
)
def test_the_reader_may_choose_between_logs_where_there_are_two(server, said, run, login, alice):
    Run.objects.filter(pk=run.pk).update(config={**run.config, "sampling": {"server": server}})
    page = login(alice).get(url("detail", run), {"tab": "log"}).content.decode()
    assert ("data-log-of" in page) == (said is not None)
    assert said is None or said in page


async def _body(response) -> bytes:
    return b"".join([part async for part in response.streaming_content])


def test_checkpoint_is_a_tar_without_trainer_state(run, login, alice):
    (run.folder.checkpoint(2) / "link").symlink_to("/etc/passwd")
    response = login(alice).get(url("checkpoint", run, 2))
    body = asyncio.run(_body(response))
    assert int(response["Content-Length"]) == len(body)
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        names = tar.getnames()
        model = next(name for name in names if name.endswith("/model.safetensors"))
        assert tar.extractfile(model).read() == (run.folder.checkpoint(2) / "model.safetensors").read_bytes()
    assert sorted(name.rpartition("/")[2] for name in names) == ["config.json", "manifest.json", "model.safetensors"]


def test_incomplete_checkpoint_is_refused(run, login, alice):
    (run.folder.checkpoint(2) / "manifest.json").unlink()
    assert login(alice).get(url("checkpoint", run, 2)).status_code == 404


def test_config_reads_back(run, login, alice):
    import tomllib

    assert tomllib.loads(login(alice).get(url("config", run)).content.decode())["seed"] == 7


def test_steering_is_pending_until_the_trainer_takes_it(run, login, alice):
    response = login(alice).post(
        url("steer", run), {"name": "entropy_target", "value": "0.8"}, headers={"HX-Request": "true"}
    )
    assert json.loads(response["HX-Trigger"]) == {"run-steered": {"name": "entropy_target", "value": 0.8}}
    assert "0.8 takes effect at the next step" in response.content.decode()
    run.refresh_from_db()
    assert run.control_knobs["entropy_target"] == 0.8


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("entropy_target", "99", "between 0 and 20"),
        ("entropy_target", "x", "Write a number"),
        ("nonsense", "1", "no knob"),
    ],
)
def test_impossible_steering_is_refused_in_one_sentence(run, login, alice, name, value, sentence):
    response = login(alice).post(url("steer", run), {"name": name, "value": value}, headers={"HX-Request": "true"})
    assert response.status_code == 422
    assert sentence in response.content.decode()


def test_ended_run_cannot_be_steered(alice, login):
    run = fabricate_run(alice, steps=3, rewound=False, state="finished")
    assert "this one is finished" in login(alice).get(url("detail", run)).content.decode()
    assert (
        login(alice)
        .post(url("steer", run), {"name": "entropy_target", "value": "1"}, headers={"HX-Request": "true"})
        .status_code
        == 422
    )


def test_stop_without_scripts_goes_back_to_the_page(run, login, alice):
    response = login(alice).post(url("stop", run))
    assert response.headers["Location"] == url("detail", run)
    run.refresh_from_db()
    assert run.state == State.STOPPING


def test_others_may_look_but_not_act(run, login, charlie, bob):
    for person in (charlie, bob):
        client = login(person)
        page = client.get(url("detail", run))
        assert url("stop", run) not in page.content.decode()
        assert client.post(url("stop", run), headers={"HX-Request": "true"}).status_code == 403
    run.refresh_from_db()
    assert run.state == State.RUNNING


def test_actions_refuse_get(run, login, alice):
    for name in ("stop", "resume", "duplicate", "archive", "delete", "steer", "rename"):
        assert login(alice).get(url(name, run)).status_code == 405


def test_rename(run, login, alice):
    login(alice).post(url("rename", run), {"name": "  a better  name "})
    run.refresh_from_db()
    assert run.name == "a better name"


def test_delete_frees_the_folder(alice, login):
    run = fabricate_run(alice, steps=2, rewound=False, state="finished")
    folder = run.folder.path
    assert login(alice).post(url("delete", run)).headers["Location"] == reverse("runs:list")
    assert not folder.exists()
    assert not Run.objects.filter(pk=run.pk).exists()


def test_duplicate_opens_the_draft(run, login, alice):
    response = login(alice).post(url("duplicate", run))
    copy = Run.objects.get(parent=run)
    assert response.headers["Location"] == url("detail", copy)
    assert copy.state == State.DRAFT
