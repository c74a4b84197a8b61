"""The run list: what it finds, in which order, at what cost, and what can be done to several runs."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from trainer.config import RunConfig
from webapp.runs.filters import PAGE_SIZE, RunFilter
from webapp.runs.models import Run, State

pytestmark = pytest.mark.django_db
URL = "/runs/"


def make(owner, name: str, **more) -> Run:
    defaults = {"config": {}, "objective": "grpo", "task": "countdown", "model": "builtin:countdown-tiny"}
    return Run.objects.create(owner=owner, name=name, **defaults | more)


def names(client, query: str = "") -> list[str]:
    """Return the names on the page, in order."""
    page = client.get(URL + query, HTTP_HX_REQUEST="true").content.decode()
    return [part.split("<", 1)[0] for part in page.split('class="run-link">')[1:]]


def test_an_empty_lab_offers_the_demo(login, alice, charlie):
    assert "Launch the 3-minute demo" in login(alice).get(URL).content.decode()
    assert "Launch the 3-minute demo" not in login(charlie).get(URL).content.decode()


def test_strangers_see_nothing(client, alice):
    make(alice, "secret")
    assert client.get(URL).status_code == 302


def test_it_filters(login, alice, bob):
    make(alice, "first", tags=["seed-1"], state=State.RUNNING)
    make(bob, "second", objective="entrocraft", task="split_sum", state=State.FAILED)
    make(bob, "third", archived_at=timezone.now())
    client = login(alice)
    for query, found in {
        "": ["second", "first"],
        "?q=FIR": ["first"],
        "?q=seed-1": ["first"],
        "?state=running": ["first"],
        "?state=failed": ["second"],
        "?objective=entrocraft": ["second"],
        "?task=countdown": ["first"],
        "?owner=bob": ["second"],
        "?tag=seed-1": ["first"],
        "?model=other": [],
        "?archived=1": ["third"],
        "?q=%00%27%3B--": [],
        "?page=999": ["second", "first"],
        "?page=x&sort=evil": ["second", "first"],
    }.items():
        assert names(client, query) == found, query


def test_search_finds_an_id(login, alice):
    run = make(alice, "by id")
    make(alice, "other")
    assert names(login(alice), f"?q={run.pk}") == ["by id"]


def test_it_sorts(login, alice):
    now = timezone.now()
    for name, reward, entropy, minutes, state in (
        ("a", 0.5, 0.9, 3, State.FINISHED),
        ("b", 0.9, 0.1, 9, State.RUNNING),
        ("c", None, None, None, State.DRAFT),
    ):
        summary = {} if reward is None else {"reward/mean": reward, "entropy/mean": entropy}
        started = now - timedelta(minutes=minutes) if minutes else None
        make(
            alice,
            name,
            summary=summary,
            step=minutes or 0,
            started_at=started,
            ended_at=now if minutes else None,
            state=state,
        )
    client = login(alice)
    for sort, order in {
        "name": "abc", "-name": "cba", "-reward": "bac", "reward": "abc", "-entropy": "abc", "-step": "bac",
        "-duration": "bac", "duration": "abc", "state": "bac", "created": "abc", "-created": "cba",
    }.items():  # fmt: skip
        assert "".join(names(client, f"?sort={sort}")) == order, sort


def test_pages_do_not_overlap(login, alice):
    same = timezone.now()
    Run.objects.bulk_create(
        Run(owner=alice, name=f"n{index}", config={}, created_at=same) for index in range(2 * PAGE_SIZE + 3)
    )
    client = login(alice)
    found = [names(client, f"?page={page}") for page in (1, 2, 3)]
    assert [len(page) for page in found] == [PAGE_SIZE, PAGE_SIZE, 3]
    assert len({name for page in found for name in page}) == 2 * PAGE_SIZE + 3


def test_the_number_of_queries_does_not_grow_with_the_rows(login, alice):
    client = login(alice)
    config = RunConfig().model_dump(mode="json")
    make(alice, "one", config=config, tags=["t"])

    def count(**headers) -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            client.get(URL, **headers)
        assert not any('"config"' in query["sql"] for query in queries)
        return len(queries)

    few, few_rows = count(), count(HTTP_HX_REQUEST="true")
    for index in range(40):
        make(
            alice,
            f"run {index}",
            config=config,
            tags=["t"],
            spark_reward=[1, 2, 3],
            state=State.RUNNING,
            started_at=timezone.now(),
        )
    assert count() == few
    assert count(HTTP_HX_REQUEST="true") == few_rows <= 4


def test_state_tabs_count_what_the_filter_lets_through(login, alice):
    for index in range(3):
        make(alice, f"x{index}", state=State.RUNNING)
    make(alice, "y", state=State.FAILED)
    page = login(alice).get(f"{URL}?q=x").content.decode()
    assert 'Running <span class="count">3</span>' in page
    assert "Failed <span" not in page


def test_hostile_names_and_tags_are_text(login, alice):
    make(alice, "<script>alert(1)</script>", tags=['"><img src=x>'], state=State.FAILED, failure='" onmouseover="x')
    page = login(alice).get(URL).content.decode()
    assert "<script>alert" not in page
    assert "<img src" not in page
    assert '" onmouseover' not in page


def test_the_address_says_what_is_shown(login, alice):
    make(alice, "a")
    response = login(alice).get(
        f"{URL}?q=a&objective=&sort=-created", HTTP_HX_REQUEST="true", HTTP_HX_CURRENT_URL="http://testserver/runs/"
    )
    assert response["HX-Push-Url"] == "/runs/?q=a"
    again = login(alice).get(f"{URL}?q=a", HTTP_HX_REQUEST="true", HTTP_HX_CURRENT_URL="http://testserver/runs/?q=a")
    assert "HX-Push-Url" not in again


def test_filters_read_what_they_write():
    wanted = RunFilter(q="a b&c", state="failed", archived=True, sort="reward", page=3)
    from django.http import QueryDict

    assert RunFilter.read(QueryDict(wanted.url()[1:])) == wanted
    assert RunFilter().url() == "?"


def post(client, action: str, runs: list[Run], **more):
    return client.post("/runs/bulk/", {"action": action, "runs": [run.pk for run in runs], **more})


def test_bulk_compare(login, alice):
    runs = [make(alice, name) for name in "ab"]
    assert post(login(alice), "compare", runs)["Location"] == f"/runs/compare/?runs={runs[0].pk},{runs[1].pk}"


def test_bulk_archive_leaves_running_ones(login, alice):
    done, running = make(alice, "done", state=State.FINISHED), make(alice, "busy", state=State.RUNNING)
    client = login(alice)
    post(client, "archive", [done, running], next="/runs/?q=x")
    done.refresh_from_db()
    running.refresh_from_db()
    assert done.archived_at is not None
    assert running.archived_at is None
    page = client.get(URL).content.decode()
    assert "Archived 1 run." in page
    assert "busy: The run is running; stop it before archiving." in page


def test_bulk_delete_frees_the_folder(login, alice):
    run = make(alice, "gone", state=State.FINISHED)
    run.folder.path.mkdir(parents=True)
    post(login(alice), "delete", [run])
    assert not Run.objects.exists()
    assert not run.folder.path.exists()


def test_bulk_refuses_the_runs_of_others(login, alice, bob, charlie):
    run = make(bob, "theirs", state=State.FINISHED)
    for user in (alice, charlie):
        post(login(user), "delete", [run])
        post(login(user), "tag", [run], tag="mine")
    run.refresh_from_db()
    assert run.tags == []


def test_bulk_goes_back_only_within_the_site(login, alice):
    run = make(alice, "a", state=State.FINISHED)
    assert post(login(alice), "tag", [run], tag="t", next="https://evil.example/")["Location"] == URL
    assert post(login(alice), "explode", [run]).status_code == 400


def test_tags_are_edited_in_place(login, alice, bob):
    run = make(alice, "a", tags=["old"])
    response = login(alice).post(f"/runs/{run.pk}/tags/", {"tags": " x, y ,x,," + "z" * 90}, HTTP_HX_REQUEST="true")
    run.refresh_from_db()
    assert run.tags == ["x", "y", "z" * 40]
    assert '<span class="tag">y</span>' in response.content.decode()
    assert login(bob).post(f"/runs/{run.pk}/tags/", {"tags": "no"}).status_code == 403
