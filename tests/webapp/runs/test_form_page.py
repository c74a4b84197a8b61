"""The new-run page: who may, what it starts with, how it judges, what a launch leaves behind."""

from __future__ import annotations

import json
import re

import pytest
from django.urls import reverse

from trainer.config import RunConfig
from trainer.model_files import ModelInfo
from webapp.catalog.models import Dataset
from webapp.runs import checks
from webapp.runs.forms import RunForm
from webapp.runs.models import Run, State
from webapp.runs.services import run_create

pytestmark = pytest.mark.django_db
URL, CHECK = "/runs/new/", "/runs/new/check/"


@pytest.fixture
def quick_check(monkeypatch):
    """The trainer's own look at a config, here without starting one: it takes seconds and is tested below."""

    async def deep(config):
        return checks.Checked()

    monkeypatch.setattr(checks, "deep", deep)


def fields(config: RunConfig | None = None, **changes: str) -> dict[str, str]:
    return RunForm.of(config or RunConfig()).data | {name.replace("__", "."): text for name, text in changes.items()}


def error_at(page: str, path: str) -> str:
    """Return the sentence shown beside a field."""
    return page.split(f'data-error-for="{path}"')[1].split(">", 1)[1].split("<")[0]


def test_it_shows_every_step(login, alice):
    page = login(alice).get(URL).content.decode()
    for text in ("Base model", "countdown-tiny", "Entropy objective", "Target entropy", "Resources", "Ready to launch"):
        assert text in page
    assert 'name="sampling.prompts_per_step" value="32"' in page
    assert "python -m trainer run config.toml" in page


def test_viewers_may_not(login, charlie, quick_check):
    client = login(charlie)
    assert client.get(URL).status_code == 403
    assert client.post(URL, fields() | {"action": "launch"}).status_code == 403
    assert client.post(CHECK, fields()).status_code == 403
    assert not Run.objects.exists()


def test_strangers_are_sent_to_sign_in(client, db):
    assert client.get(URL).status_code == 302


def test_launch_queues_the_run(login, alice, quick_check):
    response = login(alice).post(URL, fields(optimiser__steps="7", name="mine") | {"action": "launch"})
    run = Run.objects.get()
    assert response["Location"] == reverse("runs:detail", args=[run.pk])
    assert (run.state, run.name, run.owner, run.total_steps) == (State.QUEUED, "mine", alice, 7)
    assert json.loads(run.folder.config.read_text()) == run.config
    assert RunConfig.model_validate(run.config) == RunConfig.model_validate({"name": "mine", "optimiser": {"steps": 7}})


def test_a_draft_waits(login, alice):
    login(alice).post(URL, fields() | {"action": "draft"})
    run = Run.objects.get()
    assert run.state == State.DRAFT
    assert not run.folder.path.exists()


def test_what_the_deep_check_finds_stops_the_launch(login, alice, monkeypatch):
    async def deep(config):
        return checks.Checked(problems={"task.held_out": "The data have one row only."})

    monkeypatch.setattr(checks, "deep", deep)
    response = login(alice).post(URL, fields() | {"action": "launch"})
    assert response.status_code == 422
    assert error_at(response.content.decode(), "task.held_out") == "The data have one row only."
    assert not Run.objects.exists()


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"model__source": "builtin:nothing"}, "model.source", "no builtin:nothing"),
        ({"model__source": "/etc"}, "model.source", "under a"),
        ({"sampling__max_completion_tokens": "4000"}, "sampling.max_completion_tokens", "64 tokens in all"),
        ({"resources__gpus": "4"}, "resources.gpus", "4 GPUs are asked for and the lab has 0"),
        ({"optimiser__minibatches_per_step": "5"}, "optimiser.minibatches_per_step", "do not divide"),
        ({"optimiser__learning_rate": "8"}, "optimiser.learning_rate", "less than or equal to 1"),
        ({"task__type": "dataset"}, "task.path", "Choose a dataset"),
        ({"task__type": "dataset", "task__path": "/etc/passwd"}, "task.path", "declared root"),
        (
            {"sampling__engine": "vllm", "model__source": "builtin:countdown-tiny"},
            "sampling.engine",
            "On a CPU vLLM runs attention heads of 32, 64, 80",
        ),
        (
            {
                "sampling__engine": "vllm",
                "model__source": "builtin:countdown-tiny-llama",
                "sampling__server__enabled": "on",
                "sampling__vllm__cache_gigabytes": "0.0001",
            },
            "sampling.vllm.cache_gigabytes",
            "One sequence of 48 tokens takes",
        ),
        (
            {"sampling__server__enabled": "on", "sampling__server__address": "metadata.internal:80"},
            "sampling.server.address",
            "leave the address empty, so that the run starts its own, or ask an admin to declare the host in",
        ),
    ],
)
def test_bad_input_is_said_at_its_field_and_nothing_is_kept(changes, path, says, login, alice, quick_check):
    response = login(alice).post(URL, fields(**changes) | {"action": "launch"})
    assert response.status_code == 422
    assert says in error_at(response.content.decode(), path)
    assert not Run.objects.exists()


@pytest.mark.parametrize(("field", "value"), [("top_p", "0.9"), ("top_k", "5"), ("min_p", "0.1"), ("typical_p", "0.9")])
def test_truncation_under_a_correction_is_said_at_the_truncation(field, value, login, alice, quick_check):
    corrected = RunConfig.model_validate({"objective": {"preset": "grpo-tis"}})
    changed = fields(corrected, **{f"sampling__{field}": value})
    response = login(alice).post(URL, changed | {"action": "launch"})
    assert response.status_code == 422
    assert "or set correction = &quot;off&quot;" in error_at(response.content.decode(), f"sampling.{field}")
    assert not Run.objects.exists()


def test_broken_weights_are_said_at_the_model(login, alice, settings, quick_check):
    folder = settings.MODELS_ROOT / "broken"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    response = login(alice).post(URL, fields(model__source=str(folder)) | {"action": "launch"})
    assert response.status_code == 422
    assert "model.safetensors" in error_at(response.content.decode(), "model.source")


def test_a_column_that_is_missing_is_said_at_the_column(login, alice, settings):
    settings.DATASETS_ROOT.mkdir()
    (settings.DATASETS_ROOT / "a.jsonl").write_text('{"q": "1+1", "a": "2"}\n{"q": "2+2", "a": "4"}\n')
    columns = [{"name": name, "lengths": {"max": 3}} for name in ("q", "a")]
    Dataset.objects.create(
        name="a", owner=alice, path="a.jsonl", format="jsonl", rows=2, columns=columns, bytes=1, sha256=""
    )
    path = str(settings.DATASETS_ROOT / "a.jsonl")
    sent = fields(task__type="dataset", task__path=path, task__prompt_column="problem", task__answer_column="a")
    page = login(alice).post(CHECK, sent).content.decode()
    assert "“problem” is no column of a; choose one of q, a." in page


def test_typing_brings_back_messages_and_no_fields(login, alice):
    page = login(alice).post(CHECK, fields(sampling__top_p="3"), HTTP_HX_REQUEST="true").content.decode()
    assert "sampling.top_p" in page
    assert 'name="sampling.top_p"' not in page
    assert "1 thing to mend" in page


@pytest.mark.parametrize(
    ("preset", "said"),
    [("grpo", None), ("dapo-dynamic", "512 to 5,120"), ("t1", "2,048"), ("dars-et", "512 to 1,024")],
)
def test_what_is_generated_beside_what_is_learned_is_said(login, alice, preset, said):
    page = login(alice).post(CHECK, fields(RunConfig.model_validate({"objective": {"preset": preset}})))
    row = re.search(r"Generated per step</dt><dd>(.*?)</dd>", page.content.decode())
    assert (row and row[1].replace("\u202f", ",")) == said


def test_an_operation_brings_back_its_part(login, alice):
    page = login(alice).post(CHECK, fields() | {"op": "add:rewards:exact"}, HTTP_HX_REQUEST="true").content.decode()
    assert 'name="rewards.1.type"' in page
    assert 'name="sampling.top_p"' not in page


def test_the_page_works_without_scripts(login, alice):
    page = login(alice).post(URL, fields() | {"op": "add:rewards:exact"}).content.decode()
    assert 'name="rewards.1.type"' in page
    assert 'name="sampling.top_p"' in page
    assert not Run.objects.exists()


def test_a_copy_starts_from_the_other_run(login, alice, bob, quick_check):
    config = RunConfig.model_validate({"objective": {"preset": "entrocraft"}, "optimiser": {"steps": 33}})
    first = run_create(user=bob, config=config, name="theirs")
    client = login(alice)
    page = client.get(f"{URL}?copy={first.pk}").content.decode()
    assert "Copy of" in page
    assert 'name="optimiser.steps" value="33"' in page
    client.post(URL, fields(config) | {"action": "launch", "parent": first.pk})
    assert Run.objects.get(owner=alice).parent == first


def test_links_of_the_catalogue_choose_for_you(login, alice):
    page = login(alice).get(f"{URL}?preset=kl-cov&model=builtin:smollm2-135m-instruct").content.decode()
    assert 'value="kl-cov" checked' in page
    assert 'value="builtin:smollm2-135m-instruct" checked' in page
    assert login(alice).get(f"{URL}?preset=<b>&model=&dataset=9").status_code == 200


def test_the_planned_entropy_is_drawn(login, alice):
    page = login(alice).get(f"{URL}?preset=entrocraft").content.decode()
    assert "Target entropy over the run" in page
    assert "course-band" in page


def test_hostile_names_are_shown_as_text(login, alice, monkeypatch):
    bad = ModelInfo(source="/m/<script>alert(1)</script>", kind="folder", problems=["<img src=x onerror=alert(1)>"])
    monkeypatch.setattr(checks, "catalogue", lambda: [bad])
    page = login(alice).get(URL).content.decode()
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page


def test_the_demo_is_launched_once(login, alice):
    client = login(alice)
    first = client.post("/runs/demo/")["Location"]
    assert client.post("/runs/demo/")["Location"] == first
    assert Run.objects.get().state == State.QUEUED


async def test_a_trainer_tries_the_reward_on_three_rows(monkeypatch):
    monkeypatch.setattr(checks, "DEEP_SECONDS", 200.0)  # a busy test machine is no reason to give up
    tried = await checks.deep(RunConfig())
    assert [trial.score_of_answer for trial in tried.trials] == [1.0, 1.0, 1.0]
    assert tried.problems == {}


async def test_a_check_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(checks, "DEEP_SECONDS", 0.05)
    tried = await checks.deep(RunConfig())
    assert "was ended" in tried.note


async def test_the_check_sees_none_of_our_secrets(monkeypatch, settings):
    monkeypatch.setenv("ISENTROPE_SECRET_KEY", "planted")
    monkeypatch.setenv("DATABASE_URL", "planted")
    assert "planted" not in json.dumps(checks.child_environment())


async def test_without_a_trainer_the_check_is_left_to_the_worker(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert "not installed" in (await checks.deep(RunConfig())).note
