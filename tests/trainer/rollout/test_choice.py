"""What an engine that draws by itself cannot do is refused: by the config, or where the engine turns out to be one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.trainer.rollout.collecting import config_of, planning
from trainer.errors import ConfigError
from trainer.objectives.registry import PARTS, PRESETS
from trainer.rollout import Caps, choice

BOUNDS = {"engine": "vllm", "vllm": {"entropy": "bounds"}}
PLAIN = {  # presets that take no more than draws from the policy, log-probs and entropies
    "aepo", "scope-rl", "dapo-dynamic", "dars-et", "dars-hw", "prompt-augmentation", "cure", "ettrl", "treerl",
    "rose-entropy",
}  # fmt: skip
FIXES = {"t1": "set hotter to 1 in oversampling", "echo-rollout": "remove echo_rollout"}


def fix_of(preset: str) -> str:
    decoding = [part["type"] for part in PRESETS[preset].parts if PARTS[part["type"]].stage == "decoding"]
    return FIXES.get(preset) or f"remove {decoding[0]}"


@pytest.mark.parametrize("preset", planning())
def test_with_bounds_a_config_takes_what_vllm_can_draw_by_itself_alone(preset):
    if preset in PLAIN:
        assert config_of(preset, sampling=BOUNDS).sampling.vllm.entropy == "bounds"
        return
    with pytest.raises(ConfigError, match=f"choose exact, or {fix_of(preset)}") as caught:
        config_of(preset, sampling=BOUNDS)
    assert caught.value.field == "sampling.vllm.entropy"


def test_oversampling_at_the_temperature_of_training_draws_plainly():
    cooler = {"objective": {"preset": "t1", "parts": [{"type": "oversampling", "hotter": 1.0}]}}
    assert config_of("t1", **cooler, sampling=BOUNDS).sampling.vllm.entropy == "bounds"


class Engine:
    """An engine as far as a run's start looks at it."""

    def __init__(self, **caps: bool) -> None:
        self.caps = Caps(exact_entropy=True, per_request_sampler=True, prefix=True, in_process=True, **caps)
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("preset", planning())
def test_an_engine_that_turns_out_to_draw_by_itself_ends_the_run_at_its_start(monkeypatch, preset):
    """Not in the step that first needs it: HAPO's first step is plain, and ECHO would find nothing to read."""
    config, nobody = config_of(preset, sampling={"engine": "vllm"}), SimpleNamespace()

    def start(made: Engine) -> Any:
        monkeypatch.setattr(choice, "engine", lambda *given: made)
        return choice.generator(config, nobody, nobody, nobody)  # type: ignore[arg-type]

    able, unable = Engine(modifiers=True), Engine(modifiers=False)
    assert start(able) is able
    if preset in PLAIN:
        assert start(unable) is unable
        return
    with pytest.raises(ConfigError, match=f"choose hf, or {fix_of(preset)}") as caught:
        start(unable)
    assert (caught.value.field, unable.closed, able.closed) == ("sampling.engine", True, False)
