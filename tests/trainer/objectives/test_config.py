"""What a config resolves to, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
import tomli_w

from trainer.config import load
from trainer.errors import ConfigError
from trainer.objectives import PARTS, PRESETS, STAGES, ObjectiveConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_json_and_toml(preset: str) -> None:
    config = ObjectiveConfig(preset=preset)
    assert ObjectiveConfig.model_validate_json(config.model_dump_json()) == config
    text = tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
    assert ObjectiveConfig.model_validate(tomllib.loads(text)) == config
    order = [STAGES.index(part.stage) for part in config.parts]
    assert order == sorted(order)


def test_every_part_has_a_row_a_title_and_a_type_of_its_own() -> None:
    for name, part in PARTS.items():
        assert part.model_fields["type"].default == name
        assert part.title
        assert part.__doc__


def resolve(*parts: dict, preset: str = "grpo") -> dict[str, object]:
    config = ObjectiveConfig.model_validate({"preset": preset, "parts": list(parts)})
    return {part.type: part for part in config.parts}


def test_a_given_part_changes_only_the_fields_it_names() -> None:
    part = resolve({"type": "ppo_clip", "clip_low": 0.1}, preset="dapo")["ppo_clip"]
    assert (part.clip_low, part.clip_high, part.dual_clip) == (0.1, 0.28, 10.0)


def test_a_new_part_is_added_in_its_place() -> None:
    assert list(resolve({"type": "entropy_bonus"}, {"type": "overlong_filter"})) == [
        "group_norm",
        "overlong_filter",
        "ppo_clip",
        "entropy_bonus",
        "token_mean",
    ]


def test_another_aggregation_takes_the_preset_ones_place() -> None:
    parts = resolve({"type": "seq_mean_token_mean"}, {"type": "importance_ratio"})
    assert list(parts) == ["group_norm", "importance_ratio", "seq_mean_token_mean"]


def test_a_changed_config_survives_json_too() -> None:
    config = ObjectiveConfig.model_validate(
        {"preset": "grpo", "parts": [{"type": "const_norm", "length": 7}, {"type": "kl_penalty"}]}
    )
    assert ObjectiveConfig.model_validate_json(config.model_dump_json()) == config
    assert ObjectiveConfig(preset="grpo", parts=config.parts) == config


@pytest.mark.parametrize(
    ("objective", "field", "says"),
    [
        ({"parts": [{"type": "ppo_clip", "clip_low": 3}]}, "ppo_clip.clip_low", "less than or equal to 1"),
        ({"parts": [{"type": "ppo_clip", "clip_lo": 0.1}]}, "ppo_clip.clip_lo", "not permitted"),
        ({"parts": [{"type": "ppo_clip", "clip_low": float("nan")}]}, "ppo_clip.clip_low", ""),
        ({"parts": [{"type": "clap"}]}, "objective.parts", "no part 'clap'"),
        ({"parts": [{"clip_low": 0.1}]}, "objective.parts", "type"),
        ({"preset": "gpro"}, "objective.preset", "no preset 'gpro'"),
        ({"preset": 3}, "objective.preset", "string"),
        ({"parts": "ppo_clip"}, "objective.parts", "list"),
        (
            {"parts": [{"type": "token_mean"}, {"type": "const_norm"}]},
            "objective.parts",
            "both of the stage aggregation",
        ),
        ({"parts": [{"type": "ppo_clip"}, {"type": "ppo_clip"}]}, "objective.parts", "twice"),
        ({"parts": [{"type": "skywork"}]}, "objective.parts", "needs entropy_bonus"),
        ({"preset": "skywork-adaptive", "parts": [{"type": "thermostat"}]}, "objective.parts", "both set"),
        ({"preset": "clip-cov", "parts": [{"type": "kl_cov"}]}, "objective.parts", "does not work together"),
        (
            {"preset": "grpo", "parts": [{"type": "flexible_clip"}, {"type": "flexible_hysteresis"}]},
            "objective.parts",
            "only with schedule = od",
        ),
        ({"preset": "clip-cov", "parts": [{"type": "clip_cov", "lower": 6}]}, "clip_cov", "not below upper"),
        ({"preset": "entrocraft", "parts": [{"type": "entrocraft", "low_end": 0.9}]}, "entrocraft", "lower edge"),
        (
            {"preset": "entropy-target", "parts": [{"type": "thermostat", "schedule": "drawn"}]},
            "thermostat",
            "draw",
        ),
        (
            {"preset": "entropy-target", "parts": [{"type": "thermostat", "points": [[0.5, 1], [0.2, 1]]}]},
            "thermostat.points",
            "rise",
        ),
        ({"preset": "aepo", "parts": [{"type": "scope_sampling"}]}, "objective.parts", "scope_term"),
    ],
)
def test_what_cannot_work_is_refused_by_name(objective: dict, field: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load({"objective": objective})
    assert field in error.value.field
    assert says in str(error.value)


def test_the_config_and_the_preview_import_no_torch() -> None:
    code = (
        "import sys, trainer.config, trainer.objectives.preview as p; p.catalogue(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
