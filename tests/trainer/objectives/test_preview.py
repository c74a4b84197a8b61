"""What the form is told of an objective."""

from __future__ import annotations

import json

import pytest

from trainer.objectives import PARTS, PRESETS, ObjectiveConfig
from trainer.objectives.preview import catalogue, describe


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_explains_itself(preset: str) -> None:
    shown = describe(preset)
    assert shown["title"]
    assert len(shown["summary"]) > 80
    assert shown["when"]
    assert shown["reference"]["title"]
    assert shown["confidence"]
    for part in shown["parts"]:
        assert part["title"]
        assert part["text"]
        assert all(field["help"].endswith(".") for field in part["fields"])
    json.dumps(shown)


def test_the_catalogue_lists_everything() -> None:
    shown = catalogue()
    assert [preset["name"] for preset in shown["presets"]] == list(PRESETS)
    assert list(shown["parts"]) == list(PARTS)
    json.dumps(shown)


def curve(preset: str, **fields) -> dict | None:
    config = ObjectiveConfig.model_validate({"preset": preset, "parts": [fields] if fields else []})
    return describe(config)["curve"]


def test_curves_follow_the_schedule() -> None:
    assert curve("grpo") is None
    band = curve("entrocraft")
    assert (band["unit"], band["low"][0], band["low"][-1], band["high"][50]) == pytest.approx(("nats", 0.6, 0.4, 0.6))
    falling = curve("entropy-target", type="thermostat", target=0.5, schedule="linear", until=0.5)
    assert falling["unit"] == "x initial"
    assert [falling["low"][index] for index in (0, 25, 50, 100)] == pytest.approx([1, 0.75, 0.5, 0.5])
    points = [[0.0, 1.0], [1.0, 0.2]]
    drawn = curve("entropy-target", type="thermostat", measure="nats", schedule="drawn", points=points)
    assert (drawn["unit"], drawn["low"][50]) == ("nats", pytest.approx(0.6))
