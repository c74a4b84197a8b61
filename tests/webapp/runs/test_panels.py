"""Which charts a run's overview has."""

from __future__ import annotations

import pytest

from trainer.config import load
from webapp.runs.models import Run
from webapp.runs.panels import panels


@pytest.mark.parametrize(
    ("preset", "shown"), [("grpo", False), ("aepo", False), ("dapo-dynamic", True), ("dars-hw", True), ("t1", True)]
)
def test_overgeneration_is_charted_where_a_strategy_plans_the_rollouts(preset, shown):
    run = Run(config=load({"objective": {"preset": preset}}).model_dump(mode="json"))
    charted = {series["name"] for panel in panels(run) for series in panel["series"]}
    assert ("rollout/overhead" in charted) == shown


def test_a_run_whose_parts_are_gone_still_has_its_charts():
    charts = panels(Run(config={"objective": {"parts": [{"type": "no such part"}, {}]}}))
    assert charts[0]["id"] == "reward"
