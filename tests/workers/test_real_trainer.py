"""The supervisor with the trainer itself instead of the stand-in, in one process and in two."""

from __future__ import annotations

import pytest

from trainer.config import load
from webapp.runs.models import Run
from webapp.runs.services import run_create, run_launch

pytestmark = pytest.mark.django_db

TINY = {
    "optimiser": {"steps": 2},
    "sampling": {"prompts_per_step": 4, "samples_per_prompt": 4},
    "evaluation": {"prompts": 2, "samples_per_prompt": 2},
}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_real_run_ends_with_a_checkpoint(supervisor, until, alice, monkeypatch, processes):
    monkeypatch.delenv("ISENTROPE_TRAINER")
    run = run_create(user=alice, config=load({**TINY, "resources": {"processes": processes}}))
    run_launch(run=run, user=alice)

    def ended() -> bool:
        run.refresh_from_db()
        return run.state not in ("queued", "starting", "running")

    until(supervisor, ended, seconds=150)
    assert run.state == "finished", f"{run.failure}\n{run.failure_log}"
    assert run.step == 2
    assert run.checkpoints.first().step == 2
    assert {"reward/mean", "entropy/mean"} <= run.summary.keys()
    assert run.folder.rollout_file(2).exists()
    assert Run.objects.get(pk=run.pk).knobs
