"""What pages say of memory: the form before a launch, the run page afterwards."""

from __future__ import annotations

import re

import pytest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from trainer.config import load
from trainer.memory import LABELS, advice, plan
from trainer.models import inspect
from webapp.runs import checks
from webapp.runs.forms import RunForm
from webapp.runs.memory_view import WIDTH, after_launch
from webapp.runs.models import Event, Gpu, Worker
from webapp.runs.services import run_create

pytestmark = pytest.mark.django_db
CHECK = "/runs/new/check/"
GIB = 1 << 30


def panel(client, **sections) -> str:
    """Return the form's answer about a config."""
    data = RunForm.of(load(sections)).data
    return client.post(CHECK, data).content.decode()


def widths(page: str) -> list[float]:
    found = re.findall(r'<rect class="part-(?!track|limit)\w+" x="[\d.]+" y="3" width="([\d.]+)"', page)
    return [float(width) for width in found]


def started(run, data) -> Event:
    """Note the beginning of an attempt, as the worker does."""
    return Event.objects.create(run=run, attempt=1, seq=1, type="started", step=0, time=timezone.now(), data=data)


def test_the_form_shows_the_peak_its_parts_and_that_it_fits(login, alice, monkeypatch):
    monkeypatch.setattr("trainer.preflight.available", lambda: 64 * GIB)
    page = panel(login(alice), model={"source": "builtin:smollm2-135m-instruct"})
    assert "Memory at its fullest" in page
    for part in ("Python and libraries", "Weights", "Optimiser state", "Gradients", "Activations"):
        assert part in page
    assert "Fits: 64.0 GiB free on this machine." in page
    assert "<ol" not in page[page.index("data-memory") :]
    assert 0 < sum(widths(page)) < WIDTH / 2


def test_a_run_that_does_not_fit_says_so_with_the_most_effective_change_first(login, alice, monkeypatch):
    monkeypatch.setattr("trainer.preflight.available", lambda: 2 * GIB)
    page = panel(login(alice), model={"source": "builtin:smollm2-135m-instruct"})
    assert re.search(r"This is [\d.]+ [GM]iB more than the 2.0 GiB free on this machine", page)
    fields = re.findall("<code>([a-z_.]+)</code>", page[page.index("memory-advice") :])
    config = load({"model": {"source": "builtin:smollm2-135m-instruct"}})
    assert fields == [change.field for change in advice(config, inspect(config.model.source))]
    assert {"model.lora.enabled", "model.gradient_checkpointing"} < set(fields)
    assert sum(widths(page)) == pytest.approx(WIDTH, rel=1e-3)  # the bar is the run, the mark what there is
    assert "may take" not in page  # once is enough
    assert "Ready to launch" in page  # a warning, no fault


def test_a_run_on_gpus_is_compared_with_the_smallest(login, alice):
    worker = Worker.objects.create(name="w", host="h")
    for index, memory in enumerate((80 * GIB, 24 * GIB)):
        Gpu.objects.create(worker=worker, index=index, memory_bytes=memory)
    assert checks.smallest_gpu() == 24 * GIB
    page = panel(login(alice), resources={"gpus": 1})
    assert "Fits: 24.0 GiB on the smallest GPU." in page


def test_processes_of_one_machine_add_up(login, alice):
    page = panel(login(alice), resources={"processes": 4})
    assert "4 processes together" in page


def test_a_model_that_does_not_say_its_shape_is_unknown(login, alice, monkeypatch):
    info = inspect("builtin:countdown-tiny").model_copy(update={"heads": 0})
    monkeypatch.setattr("trainer.preflight.models.inspect", lambda source, roots=None: info)
    page = panel(login(alice))
    assert escape("Memory: unknown, because the model's files do not say num_attention_heads.") in page
    assert "memory-bar" not in page


def test_the_run_page_compares_prediction_and_measurement(login, alice):
    config = load({})
    run = run_create(user=alice, config=config)
    client, url = login(alice), reverse("runs:detail", args=[run.pk])
    assert "data-memory" not in client.get(url).content.decode()
    foretold = plan(config, inspect(config.model.source))
    phases = {phase.name: phase.parts for phase in foretold.phases}
    data = {"resume_step": 0, "total_steps": 1, "device": "cpu", "memory": phases}
    started(run, data)
    assert after_launch(run).predicted == foretold.peak_bytes
    run.summary = {"memory/peak_bytes": float(foretold.peak_bytes * 2)}
    run.save()
    page = client.get(url).content.decode()
    assert "the prediction is 50 % of it" in page
    assert sum(widths(page)) == pytest.approx(WIDTH / 2, rel=1e-3)


def test_events_of_strangers_draw_nothing(login, alice):
    run = run_create(user=alice, config=load({}))
    event = started(run, {"memory": {"<b>": {"x": 1}}})
    assert after_launch(run) is None
    event.data = {"memory": {"update": {"weights": "<script>"}}}
    event.save()
    assert after_launch(run) is None


def test_every_part_has_a_colour_in_both_themes(settings):
    style = (settings.BASE_DIR / "webapp/static/css/memory.css").read_text("utf-8")
    light, _, dark = style.partition('[data-bs-theme="dark"]')
    for name in LABELS:
        assert f".part-{name} {{ --part:" in light, name
        assert f".part-{name} {{ --part:" in dark, name
