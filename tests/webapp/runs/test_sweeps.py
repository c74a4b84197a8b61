"""Sweeps: made whole or not at all, stopped, rerun and deleted whole; their form, row, page and who may do what."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from trainer.config import RunConfig
from webapp import queue
from webapp.runs import checks
from webapp.runs import services as run_services
from webapp.runs.forms import RunForm
from webapp.runs.models import Checkpoint, Event, Run, State, Sweep
from webapp.runs.sweeps import services
from webapp.runs.sweeps.curves import POINTS, curves
from webapp.runs.sweeps.form import read_typed
from webapp.runs.sweeps.plan import plan
from webapp.runs.sweeps.table import members, table

pytestmark = pytest.mark.django_db
NEW, CHECK = "/runs/new/", "/runs/new/check/"
VERBS = [
    services.sweep_launch,
    services.sweep_request_stop,
    services.sweep_rerun,
    services.sweep_archive,
    services.sweep_unarchive,
    services.sweep_delete,
]


@pytest.fixture(autouse=True)
def quick_check(monkeypatch):
    """The trainer's own look at a config takes seconds; what it finds is put in here."""
    found: dict[str, str] = {}

    async def deep(config):
        return checks.Checked(problems=dict(found))

    monkeypatch.setattr(checks, "deep", deep)
    return found


def typed(**changes: str) -> dict[str, str]:
    """Return the posted form of two objectives with two seeds and two learning rates."""
    fields = RunForm.of(RunConfig()).data | {
        "name": "league",
        "sweep.on": "on",
        "sweep.seeds": "0, 1",
        "sweep.preset.dapo": "on",
        "sweep.parameters.0.path": "optimiser.learning_rate",
        "sweep.parameters.0.values": "1e-5, 3e-5",
    }
    return fields | {name.replace("__", "."): text for name, text in changes.items()}


def make(user, *, launch: bool = False, **changes: str) -> Sweep:
    form = RunForm.posted(typed(**changes).items())
    found = plan(form, read_typed(form.data))
    assert found.ready, found.problems
    sweep = services.sweep_create(user=user, config=form.config, axes=found.axes, members=found.members)
    if launch:
        services.sweep_launch(sweep=sweep, user=user)
    return sweep


def states(sweep: Sweep) -> list[str]:
    return sorted(Run.objects.filter(sweep=sweep).values_list("state", flat=True))


def set_state(runs, state: State, **more) -> None:
    Run.objects.filter(pk__in=[run.pk for run in runs]).update(state=state, **more)


# --- Verbs ----------------------------------------------------------------------------------------------------------


def test_members_are_drafts_with_their_place(alice):
    sweep = make(alice)
    assert states(sweep) == ["draft"] * 8
    run = sweep.runs.get(name="league · dapo · learning_rate=3e-5 · seed 1")
    assert run.member == {"objective": "dapo", "seed": 1, "values": {"optimiser.learning_rate": "3e-5"}}
    assert (run.config["seed"], run.config["optimiser"]["learning_rate"]) == (1, 3e-5)
    assert (run.objective, run.owner) == ("dapo", alice)
    assert not run.folder.path.exists()


def test_launch_queues_all_and_rings_once(alice, monkeypatch, django_capture_on_commit_callbacks):
    rung = []
    monkeypatch.setattr(queue, "_send", lambda task, args, queue: rung.append(task))
    sweep = make(alice)
    with django_capture_on_commit_callbacks(execute=True):
        assert services.sweep_launch(sweep=sweep, user=alice) == 8
    assert states(sweep) == ["queued"] * 8
    assert rung == [queue.SCHEDULE]
    for run in sweep.runs.all():
        assert json.loads(run.folder.config.read_text()) == run.config
    with pytest.raises(ValidationError):
        services.sweep_launch(sweep=sweep, user=alice)


def test_a_launch_that_fails_halfway_leaves_nothing(alice, monkeypatch, settings):
    sweep, write, count = make(alice), run_services.write_atomically, []

    def full_disk(path, text):
        count.append(path)
        if len(count) == 5:
            raise OSError(28, "No space left on device")
        return write(path, text)

    monkeypatch.setattr(run_services, "write_atomically", full_disk)
    with pytest.raises(ValidationError, match="No space left"):
        services.sweep_launch(sweep=sweep, user=alice)
    assert states(sweep) == ["draft"] * 8
    assert list(settings.RUNS_ROOT.iterdir()) == []


def test_stop_empties_the_queue_and_asks_what_runs(alice):
    sweep = make(alice, launch=True)
    runs = list(sweep.runs.all())
    set_state(runs[:1], State.RUNNING)
    set_state(runs[1:3], State.FINISHED)
    assert services.sweep_request_stop(sweep=sweep, user=alice) == 6
    assert states(sweep) == ["draft"] * 5 + ["finished"] * 2 + ["stopping"]
    set_state(runs[:1], State.STOPPED)
    with pytest.raises(ValidationError, match="nothing to stop"):
        services.sweep_request_stop(sweep=sweep, user=alice)


def test_rerun_resumes_from_a_checkpoint_and_replaces_what_has_none(alice):
    sweep = make(alice, launch=True)
    with_checkpoint, without, *rest = sweep.runs.all()
    set_state(rest, State.FINISHED)
    set_state([with_checkpoint, without], State.FAILED, attempt=1, failure="out of memory")
    Checkpoint.objects.create(run=with_checkpoint, attempt=1, step=10, path="checkpoints/step-00000010")
    assert services.sweep_rerun(sweep=sweep, user=alice) == 2
    with_checkpoint.refresh_from_db()
    without.refresh_from_db()
    assert (with_checkpoint.state, with_checkpoint.failure) == ("queued", "")
    assert (without.state, without.sweep_id, without.failure) == ("failed", None, "out of memory")
    assert without.archived_at
    again = sweep.runs.get(parent=without)
    assert (again.state, again.member["seed"], again.name) == ("queued", again.config["seed"], without.name)
    assert len(states(sweep)) == 8
    with pytest.raises(ValidationError, match="No run"):
        services.sweep_rerun(sweep=sweep, user=alice)


def test_delete_waits_for_the_runs_and_frees_their_folders(alice, settings):
    sweep = make(alice, launch=True)
    with pytest.raises(ValidationError, match="8 of its runs are under way"):
        services.sweep_delete(sweep=sweep, user=alice)
    set_state(sweep.runs.all(), State.FINISHED)
    assert services.sweep_delete(sweep=sweep, user=alice) > 0
    assert not Run.objects.exists()
    assert not Sweep.objects.exists()
    assert list(settings.RUNS_ROOT.iterdir()) == []


def test_the_last_member_takes_the_sweep_along(alice):
    sweep = make(alice)
    for run in sweep.runs.all():
        assert Sweep.objects.exists()
        run_services.run_delete(run=run, user=alice)
    assert not Sweep.objects.exists()


def test_archive_hides_and_unarchive_shows(alice):
    sweep = make(alice)
    services.sweep_archive(sweep=sweep, user=alice)
    assert not Run.objects.active().exists()
    services.sweep_unarchive(sweep=sweep, user=alice)
    assert Run.objects.active().count() == 8


def test_rename_carries_the_members(alice):
    sweep = make(alice)
    services.sweep_rename(sweep=sweep, user=alice, name="  other\n name ")
    assert sweep.runs.filter(name="other name · grpo · learning_rate=1e-5 · seed 0").exists()
    with pytest.raises(ValidationError):
        services.sweep_rename(sweep=sweep, user=alice, name=" ")


@pytest.mark.parametrize("verb", VERBS)
def test_only_the_owner_or_a_maintainer_may(verb, alice, bob, admin_user):
    sweep = make(alice)
    if verb is services.sweep_rerun:
        set_state(sweep.runs.all(), State.FAILED)
    elif verb is services.sweep_request_stop:
        set_state(sweep.runs.all(), State.RUNNING)
    before = states(sweep)
    with pytest.raises(PermissionDenied):
        verb(sweep=sweep, user=bob)
    assert states(sweep) == before
    verb(sweep=sweep, user=admin_user)


def test_viewers_may_not_make_one(charlie):
    with pytest.raises(PermissionDenied):
        make(charlie)
    assert not Sweep.objects.exists()


# --- The form -------------------------------------------------------------------------------------------------------


def test_one_submit_launches_every_member(login, alice):
    response = login(alice).post(NEW, typed() | {"action": "launch"})
    sweep = Sweep.objects.get()
    assert response["Location"] == reverse("runs:sweep", args=[sweep.pk])
    assert (sweep.name, sweep.owner) == ("league", alice)
    assert states(sweep) == ["queued"] * 8


def test_drafts_wait_to_be_launched_together(login, alice):
    client = login(alice)
    url = client.post(NEW, typed() | {"action": "draft"})["Location"]
    sweep = Sweep.objects.get()
    assert states(sweep) == ["draft"] * 8
    assert "Launch 8" in client.get(url).content.decode()
    client.post(f"{url}launch/")
    assert states(sweep) == ["queued"] * 8


def test_nothing_is_made_unless_every_member_holds(login, alice):
    answer = login(alice).post(NEW, typed(sweep__parameters__0__values="1e-5, 9") | {"action": "launch"})
    page = answer.content.decode()
    assert answer.status_code == 422
    assert "dapo · learning_rate=9" in page
    assert "Optimiser › Learning rate" in page
    assert not Run.objects.exists()
    assert not Sweep.objects.exists()


def test_what_the_deep_check_finds_names_the_members(login, alice, quick_check):
    quick_check["task.held_out"] = "The data have one row only."
    answer = login(alice).post(NEW, typed() | {"action": "launch"})
    assert answer.status_code == 422
    assert "The data have one row only." in answer.content.decode()
    assert not Run.objects.exists()


def test_a_refused_launch_leaves_no_rows(login, alice, settings, tmp_path):
    (tmp_path / "file").write_text("")
    settings.RUNS_ROOT = tmp_path / "file"
    answer = login(alice).post(NEW, typed() | {"action": "launch"})
    assert answer.status_code == 422
    assert "cannot be written" in answer.content.decode()
    assert not Run.objects.exists()
    assert not Sweep.objects.exists()


def test_the_form_tells_the_runs_live(login, alice):
    page = login(alice).post(CHECK, typed()).content.decode()
    assert "8 runs" in page
    assert "league · dapo · learning_rate=3e-5 · seed 1" in page
    assert 'value="objective.parts.ppo_clip.clip_low"' in page
    assert "No finished run of this model tells the time yet." in page
    page = login(alice).post(CHECK, typed(sweep__seeds="0-400")).content.decode()
    assert "a sweep holds at most 200 runs" in page


def test_the_switch_off_is_one_run(login, alice):
    fields = typed()
    del fields["sweep.on"]
    login(alice).post(NEW, fields | {"action": "launch"})
    assert Run.objects.get().sweep is None


def test_viewers_may_neither_ask_nor_make(login, charlie):
    client = login(charlie)
    assert client.post(NEW, typed() | {"action": "launch"}).status_code == 403
    assert client.post(CHECK, typed()).status_code == 403
    assert not Sweep.objects.exists()


def test_launch_again_fills_the_form(login, alice, bob):
    sweep = make(alice)
    page = login(bob).get(f"{NEW}?sweep={sweep.pk}").content.decode()
    assert 'name="sweep.preset.dapo" value="on" checked' in page
    assert 'value="1e-5, 3e-5"' in page
    assert 'name="sweep.on" value="on" checked' in page
    assert "8 runs" in page
    assert login(bob).get(f"{NEW}?sweep=nothing1").status_code == 404


def test_hostile_text_is_text(login, alice):
    evil = "<script>alert(1)</script>"
    fields = typed(name=evil, sweep__seeds=evil, sweep__parameters__0__path=evil, sweep__parameters__0__values=evil)
    assert evil not in login(alice).post(CHECK, fields).content.decode()
    assert evil not in login(alice).post(NEW, fields | {"action": "launch"}).content.decode()
    sweep = make(alice, name=evil)
    for url in (reverse("runs:sweep", args=[sweep.pk]), "/runs/", f"/runs/compare/?sweep={sweep.pk}"):
        assert evil not in login(alice).get(url).content.decode()


# --- The list -------------------------------------------------------------------------------------------------------


def listed(client, query: str = "") -> list[str]:
    page = client.get(f"/runs/{query}", HTTP_HX_REQUEST="true").content.decode()
    return [part.split("<", 1)[0] for part in page.split('class="run-link">')[1:]]


def test_a_sweep_is_one_row_where_its_first_member_stands(login, alice):
    single = Run.objects.create(
        owner=alice,
        name="single",
        config={},
        created_at=timezone.now() - timedelta(hours=1),
        summary={"reward/mean": 0.5},
    )
    sweep = make(alice)
    runs = list(sweep.runs.all())
    Run.objects.filter(pk=runs[0].pk).update(summary={"reward/mean": 0.9}, state=State.FAILED)
    Run.objects.filter(pk=runs[1].pk).update(summary={"reward/mean": 0.1}, state=State.FINISHED)
    client = login(alice)
    assert listed(client) == ["league", "single"]
    assert listed(client, "?sort=created") == ["single", "league"]
    assert listed(client, "?sort=-reward") == ["league", "single"]
    assert listed(client, "?sort=reward") == ["league", "single"]
    assert listed(client, "?state=failed") == ["league"]
    assert listed(client, "?q=single") == ["single"]
    page = client.get("/runs/").content.decode()
    assert "1–2 of 2" in page
    for text in ("1 done", "1 failed", "6 draft", "8 runs", "0.100–0.900"):
        assert text in page
    assert "1 of 8 runs" in client.get("/runs/?state=failed").content.decode()
    assert 'All <span class="count">9</span>' in page
    single.delete()


def test_an_open_row_stays_open(login, alice):
    sweep, client = make(alice), login(alice)
    assert "seed 1</th>" not in client.get("/runs/").content.decode()
    assert "seed 1</th>" in client.get(f"/runs/sweeps/{sweep.pk}/?panel=fold").content.decode()
    client.cookies["isentrope_open_sweeps"] = f"nothing1.{sweep.pk}"
    assert "seed 1</th>" in client.get("/runs/").content.decode()


def test_queries_do_not_grow_with_members_or_sweeps(login, alice):
    client = login(alice)

    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            client.get("/runs/", HTTP_HX_REQUEST="true")
        assert not any('"config"' in query["sql"] for query in queries)
        return len(queries)

    make(alice, sweep__seeds="0")
    few = count()
    for _ in range(4):
        make(alice)
    assert count() == few


def test_bulk_acts_on_what_the_filter_shows_of_a_sweep(login, alice):
    sweep, client = make(alice), login(alice)
    failed = sweep.runs.first()
    set_state([failed], State.FAILED)
    fields = {"action": "archive", "runs": [f"sweep:{sweep.pk}"]}
    client.post("/runs/bulk/", fields | {"next": "/runs/?state=failed"})
    assert list(Run.objects.archived()) == [failed]
    client.post("/runs/bulk/", fields | {"next": "/runs/"})
    assert Run.objects.archived().count() == 8


def test_bulk_compares_a_whole_sweep(login, alice):
    sweep = make(alice)
    answer = login(alice).post("/runs/bulk/", {"action": "compare", "runs": [f"sweep:{sweep.pk}"]})
    assert answer["Location"] == f"/runs/compare/?sweep={sweep.pk}"


# --- The page -------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_cell_and_figures_over_seeds(alice):
    sweep = make(alice)
    for run, reward in zip(sweep.runs.order_by("name"), (0.2, 0.4, None, 0.8, 0.1, 0.1, 0.1, 0.1), strict=True):
        run.summary = {} if reward is None else {"reward/mean": reward, "entropy/mean": 1.0, "evaluation/pass@8": 0.5}
        run.save(update_fields=["summary"])
    shown = table(sweep, members([sweep.pk]))
    assert [(row.objective, row.values) for row in shown.rows] == [
        ("grpo", ["1e-5"]),
        ("grpo", ["3e-5"]),
        ("dapo", ["1e-5"]),
        ("dapo", ["3e-5"]),
    ]
    assert (shown.seeds, shown.headings) == ([0, 1], ["Reward", "Entropy", "pass@8"])
    dapo_first = shown.rows[2].figures[0].value
    assert (dapo_first.mean, dapo_first.low, dapo_first.high) == (pytest.approx(0.3), 0.2, 0.4)
    assert (shown.rows[3].figures[0].value.count, shown.rows[3].figures[0].best) == (1, True)
    assert not any(row.figures[1].best for row in shown.rows)


def test_the_page_says_where_things_stand(login, alice, bob, client):
    sweep, url = make(alice), ""
    url = reverse("runs:sweep", args=[sweep.pk])
    assert client.get(url).status_code == 302
    page = login(alice).get(url).content.decode()
    assert "These are drafts; nothing has run yet." in page
    services.sweep_launch(sweep=sweep, user=alice)
    Run.objects.filter(sweep=sweep).update(waiting_reason="no free CPU slot")
    page = login(alice).get(f"{url}?panel=live").content.decode()
    assert "No run has started yet" in page
    assert "Waiting: no free CPU slot" in page
    set_state(sweep.runs.all(), State.FAILED, failure="The disk is full; free some.", started_at=timezone.now())
    page = login(alice).get(url).content.decode()
    assert "The disk is full; free some." in page
    assert "Rerun failed 8" in page
    page = login(bob).get(url).content.decode()
    assert "Rerun failed" not in page
    assert "Launch again" in page
    assert login(alice).get(f"{url}?panel=evil").status_code == 404


def test_refusals_are_sentences_on_the_page(login, alice, bob):
    sweep = make(alice, launch=True)
    url = reverse("runs:sweep_delete", args=[sweep.pk])
    answer = login(alice).post(url, HTTP_HX_REQUEST="true")
    assert answer.status_code == 422
    assert "stop them before deleting" in answer.content.decode()
    assert login(bob).post(url, HTTP_HX_REQUEST="true").status_code == 403
    assert login(alice).get(url).status_code == 405
    assert Sweep.objects.exists()


def test_curves_leave_replaced_points_out_and_thin_alike(login, alice):
    sweep = make(alice, sweep__preset__dapo="off", sweep__parameters__0__values="1e-5", sweep__seeds="0")
    run = sweep.runs.get()

    def event(seq, attempt, step, kind="metrics", **data):
        return Event(run=run, seq=seq, attempt=attempt, step=step, type=kind, time=timezone.now(), data=data)

    def metrics(seq, attempt, step, value):
        return event(seq, attempt, step, values={"reward/mean": value})

    Event.objects.bulk_create(
        [
            event(1, 1, 0, "started", resume_step=0),
            *(metrics(2 + step, 1, step, 0.0) for step in range(1, 5)),
            event(10, 2, 2, "started", resume_step=2),
            *(metrics(11 + step, 2, step, 1.0) for step in range(3, 6)),
        ]
    )
    assert curves([run], ["reward/mean"]).runs == {run.pk: {"reward/mean": [[1, 2, 3, 4, 5], [0, 0, 1, 1, 1]]}}
    Event.objects.bulk_create(metrics(100 + step, 2, step, float(step % 2)) for step in range(6, 2 * POINTS + 1))
    answer = login(alice).get(reverse("runs:sweep_series", args=[sweep.pk])).json()
    steps, values = answer["runs"][run.pk]["reward/mean"]
    assert (answer["width"], len(steps), steps[-1]) == (2, POINTS, 2 * POINTS)
    assert set(values[3:]) == {0.5}
    assert [(group["label"], [one["id"] for one in group["runs"]]) for group in answer["groups"]] == [
        ("grpo · 1e-5", [run.pk])
    ]


def test_compare_shows_every_objective_before_more_seeds(login, alice):
    sweep = make(alice, sweep__seeds="0-9")
    page = login(alice).get(f"/runs/compare/?sweep={sweep.pk}")
    shown = json.loads(
        page.content.decode().split('id="compare-data" type="application/json">')[1].split("</script>")[0]
    )
    assert len(shown["runs"]) == 24
    assert "24 of 40 runs" in page.content.decode()
    per_row: dict[str, int] = {}
    for run in shown["runs"]:
        per_row[run["group"]["label"]] = per_row.get(run["group"]["label"], 0) + 1
    assert set(per_row.values()) == {6}
    assert len({run["colour"] for run in shown["runs"]}) == 4
    assert sum(run["pane"] for run in shown["runs"]) == 4


def test_a_member_s_page_leads_to_its_sweep(login, alice):
    sweep = make(alice)
    assert (
        reverse("runs:sweep", args=[sweep.pk]) in login(alice).get(f"/runs/{sweep.runs.first().pk}/").content.decode()
    )
