"""A step ahead is a step behind: the run takes the steps of one that draws each batch an update too early."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainer.runs import make, metrics, small, train
from tests.trainer.server.serving import served
from trainer.ahead import Batch
from trainer.objectives import Step
from trainer.rollout.server import secret
from trainer.rollout.server.backend import HfBackend


def too_early(trainer: Any) -> None:
    """Let a trainer without a server collect the next step's completions before it learns from this one's."""
    supply, waiting = trainer.supply, list[Batch]()

    def take(settings: Step, following: Step | None) -> Batch:
        batch = waiting.pop() if waiting else supply._collect(settings)
        if following is not None:
            waiting.append(supply._collect(following))
        return batch

    supply.take = take


@pytest.mark.parametrize("correction", ["off", "token"])
def test_drawing_ahead_takes_the_steps_of_drawing_too_early(tmp_path, monkeypatch, correction):
    monkeypatch.setenv(secret.VARIABLE, str(tmp_path / "token"))
    changes: dict[str, Any] = {
        "sampling": {"samples_per_prompt": 8},
        "objective": {"parts": [{"type": "ppo_clip", "correction": correction}]},
        # a large epsilon, so that Adam makes no full step of rounding
        "optimiser": {"steps": 5, "learning_rate": 5e-4, "epsilon": 1e-3, "warmup_steps": 0, "old_logprobs": "score"},
        "evaluation": {"every_steps": 0},
    }
    early = make(tmp_path / "early", small(**changes))
    train(early, prepare=too_early)
    with served(tmp_path, HfBackend(small(), torch.device("cpu"))) as (_, address):
        changes["sampling"] |= {"server": {"enabled": True, "address": address}, "staleness": 1}
        ahead = make(tmp_path / "ahead", small(**changes))
        train(ahead)
    ours, theirs = metrics(ahead), metrics(early)
    assert [ours[step]["rollout/staleness"] for step in range(1, 6)] == [0, 1, 1, 1, 1]
    assert theirs[5]["mismatch/mean_abs"] > 1e-3, "an update lies between drawing and learning"
    for step, values in theirs.items():
        for name, value in values.items():
            assert ours[step][name] == pytest.approx(value, abs=1e-5, rel=1e-4), (step, name)
