"""Figures of engine against trainer, the alert, what was drawn against the policy, and what cannot be combined."""

from __future__ import annotations

import math
import random

import pyarrow.parquet as pq
import pytest
import torch

from tests.trainer.runs import events, make, metrics, small, train
from trainer.errors import ConfigError
from trainer.mismatch import MismatchAlert, drift, mismatch
from trainer.objectives import PARTS
from trainer.objectives.decoding.vocabulary_dropout import PURPOSE
from trainer.objectives.ratio import RatioSurrogate
from trainer.rollout import Generation
from trainer.rollout.bend import vocabulary_kept
from trainer.rollout.modifiers import VocabularyDropout
from trainer.rollout.randomness import seed_of
from trainer.stream import Silent


def test_four_tokens_by_hand():
    """Ratios 2.5, 1, 1, 4 in completions of 2: products 2.5 and 4."""
    trainer = torch.tensor([0.5, 0.25, 0.1, 0.4], dtype=torch.float64).log()
    engine = torch.tensor([0.2, 0.25, 0.1, 0.1], dtype=torch.float64).log()
    found = mismatch(engine, trainer, torch.tensor([7, 7, 9, 9]))
    logs = math.log(2.5), 0.0, 0.0, math.log(4)
    assert found == pytest.approx(
        {
            "mismatch/mean": sum(logs) / 4,
            "mismatch/mean_abs": sum(logs) / 4,
            "mismatch/k3": (1.5 - logs[0] + 3 - logs[3]) / 4,
            "mismatch/max_prob": 0.3,
            "mismatch/ess": (8.5 / 4) ** 2 / ((6.25 + 1 + 1 + 16) / 4),
            "mismatch/clipped": 0.5,
            "mismatch/completions_clipped": 0.5,
            "mismatch/perplexity_trainer": (0.5 * 0.25 * 0.1 * 0.4) ** -0.25,
            "mismatch/perplexity_engine": (0.2 * 0.25 * 0.1 * 0.1) ** -0.25,
        }
    )


def test_without_a_token_that_both_know_there_are_no_figures():
    unknown = torch.tensor([math.nan, -math.inf, -1.0])
    assert mismatch(unknown, torch.tensor([-1.0, -1.0, math.nan]), torch.zeros(3).long()) == {}
    assert mismatch(unknown[:0], unknown[:0], torch.zeros(0).long()) == {}
    known = mismatch(torch.tensor([-1.0, math.nan]), torch.tensor([-1.5, -1.0]), torch.zeros(2).long())
    assert known["mismatch/mean"] == -0.5


def test_equal_log_probs_are_no_mismatch_and_any_other_costs_sample_size():
    logprob = -torch.rand(200) * 3
    place = torch.arange(200) // 10
    same = mismatch(logprob, logprob, place)
    assert (same["mismatch/mean_abs"], same["mismatch/k3"], same["mismatch/ess"]) == (0, 0, pytest.approx(1))
    other = mismatch(logprob, logprob + 0.3 * torch.randn(200), place)
    assert other["mismatch/k3"] > 0
    assert other["mismatch/ess"] < 1
    wild = mismatch(torch.full((4,), -1e4), torch.zeros(4), torch.zeros(4).long())
    assert all(math.isfinite(value) for name, value in wild.items() if name != "mismatch/perplexity_engine")


def test_what_was_drawn_is_held_against_the_policy():
    plain = Generation(0, [1, 2], [-1.0, -2.0], [1.0, 1.0], "stop")
    bent = Generation(1, [1, 2, 3], [-1.0, -2.0, -3.0], [1.0] * 3, "stop", behaviour=[-0.5, -1.5, -1.0])
    assert drift([plain, bent, plain]) == (pytest.approx(3.0), 3)
    assert drift([plain]) == (0, 0)


class Heard(Silent):
    def __init__(self) -> None:
        self.alerts: list[tuple[int, str]] = []

    def emit(self, type: str, step: int, **fields) -> None:
        assert type == "alert"
        self.alerts.append((step, fields["code"]))


@pytest.mark.parametrize(
    ("dtype", "stale", "expected"),
    [("float32", False, [2, 5]), ("bfloat16", False, [5]), ("float32", True, [])],
)
def test_people_hear_once_each_time_engine_and_trainer_part(dtype, stale, expected):
    heard = Heard()
    alert = MismatchAlert(heard, dtype, stale=stale)
    for step, mean in enumerate([0.001, 0.05, 0.05, 0.0, 0.3], 1):
        alert.check(step, {"mismatch/mean_abs": mean})
        alert.check(step, {})
    assert heard.alerts == [(step, "mismatch") for step in expected]


# -- what cannot be combined ------------------------------------------------------------------------------------------

RATIOS = [name for name, part in PARTS.items() if issubclass(part, RatioSurrogate)]


@pytest.mark.parametrize(
    ("changes", "field", "word"),
    [
        ({"sampling": {"top_p": 0.9}}, "sampling.top_p", "set it to 1"),
        ({"sampling": {"top_k": 20}}, "sampling.top_k", "set it to 0"),
        ({"sampling": {"min_p": 0.1}}, "sampling.min_p", "set it to 0"),
        ({"sampling": {"typical_p": 0.95}}, "sampling.typical_p", "set it to 1"),
        ({"objective": {"preset": "cuts"}}, "objective.parts", "remove it"),
        ({"objective": {"preset": "typical-sampling"}}, "objective.parts", "remove it"),
        ({"objective": {"preset": "vocabulary-dropout"}}, "objective.parts", "remove it"),
        ({"objective": {"preset": "aepo"}}, "objective.parts", "another temperature"),
    ],
    ids=str,
)
@pytest.mark.parametrize("correction", ["token", "sequence"])
def test_a_correction_for_what_was_not_drawn_from_the_policy_is_refused(changes, field, word, correction):
    given = dict(changes.get("objective", {"preset": "grpo"}))
    surrogate = {"type": "ppo_clip", "correction": correction}
    small(**changes)  # without it, all of these are fine
    with pytest.raises(ConfigError, match=r'correction = "off" in ppo_clip') as caught:
        small(**{**changes, "objective": {**given, "parts": [surrogate]}})
    assert caught.value.field == field
    assert word in str(caught.value)


@pytest.mark.parametrize("preset", ["grpo", "hapo", "hapo-temperature", "fork-temperature"])
def test_temperatures_leave_every_token_possible_and_may_be_corrected(preset):
    config = small(objective={"preset": preset, "parts": [{"type": "ppo_clip", "correction": "sequence"}]})
    assert any(getattr(part, "correction", "off") == "sequence" for part in config.objective.parts)


def test_every_surrogate_of_the_ratio_is_held_to_this():
    name = random.choice(RATIOS)
    with pytest.raises(ConfigError, match=r"sampling\.top_p"):
        small(sampling={"top_p": 0.5}, objective={"parts": [{"type": name, "correction": "token"}]})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"sampling": {"top_p": 0.9}}, "sampling.top_p"),
        ({"sampling": {"typical_p": 0.9}}, "sampling.typical_p"),
        ({"objective": {"preset": "hapo"}}, "hapo_temperature"),
    ],
    ids=str,
)
def test_vllm_by_itself_draws_from_the_whole_policy_alone(changes, word):
    bounds = {"engine": "vllm", "vllm": {"entropy": "bounds"}}
    small(sampling=bounds)
    with pytest.raises(ConfigError, match=rf"choose exact, or remove {word}") as caught:
        small(**{**changes, "sampling": {**bounds, **changes.get("sampling", {})}})
    assert caught.value.field == "sampling.vllm.entropy"


# -- in a run ---------------------------------------------------------------------------------------------------------


def test_a_scored_run_tells_its_mismatch_and_draws_what_it_drew_before_when_resumed(tmp_path):
    """HAPO's temperature from step 2 on; a run cut in the middle goes on bit for bit."""
    config = small(
        objective={"preset": "hapo"}, optimiser={"steps": 4, "old_logprobs": "score"}, checkpoint={"every_steps": 2}
    )
    whole, halves = make(tmp_path / "whole", config), make(tmp_path / "halves", config)
    train(whole)

    def stop(trainer) -> None:
        plain = trainer._listen

        def listen(step: int):
            trainer.signalled = step == 3
            return plain(step)

        trainer._listen = listen

    assert train(halves, prepare=stop)[0] == "interrupted"
    train(halves, attempt=2)
    assert metrics(halves) == metrics(whole)
    found = metrics(whole)
    assert "decoding/drift" not in found[1]
    assert 0 < abs(found[2]["decoding/drift"]) < 0.05
    assert 0 < found[2]["mismatch/mean_abs"] < 1e-4
    assert found[2]["mismatch/ess"] == pytest.approx(1, abs=1e-4)
    assert not events(whole, "alert")


@pytest.mark.parametrize("preset", ["cuts", "mixed-cuts", "typical-sampling", "vocabulary-dropout"])
def test_what_leaves_tokens_out_is_told_apart_from_the_policy_and_leaves_on_policy_ratios_alone(tmp_path, preset):
    """Cutting tokens off makes the others likelier, each of them; the policy is still compared with itself."""
    seed = random.randrange(1000)
    folder = make(tmp_path, small(seed=seed, objective={"preset": preset}, optimiser={"steps": 1}))
    train(folder)
    found = metrics(folder)[1]
    assert found["decoding/drift"] > 0 if "cuts" not in preset else found["decoding/drift"] != 0, seed
    assert found["kl/old"] == 0
    assert found["clip/share"] == 0
    assert events(folder, "started")[0]["plan"]["old_logprobs"]["choice"] == "engine"


def test_no_token_that_is_left_out_is_ever_drawn(tmp_path):
    config = small(objective={"preset": "vocabulary-dropout"}, optimiser={"steps": 2}, seed=random.randrange(1000))
    folder = make(tmp_path, config.model_copy())
    special: list[int] = []
    train(folder, prepare=lambda trainer: special.extend(trainer.prompts.special_ids))
    for step in (1, 2):
        drawn = [token for row in pq.read_table(folder.rollout_file(step)).to_pylist() for token in row["token_ids"]]
        modifier = VocabularyDropout(0.9, seed_of(config.seed, PURPOSE, step, 0), tuple(special))
        kept = vocabulary_kept(modifier, 100)
        assert kept[drawn].all()
