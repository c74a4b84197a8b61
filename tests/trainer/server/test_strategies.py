"""Strategies, trees and bent draws through a rollout server: what the trainer itself would collect, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.trainer.rollout.collecting import alike, collect, config_of
from tests.trainer.runs import small
from tests.trainer.server.serving import engine, move, policy, served
from trainer.policy import Policy
from trainer.rollout.hf import HfEngine
from trainer.rollout.server import job, secret
from trainer.rollout.server.backend import HfBackend
from trainer.rollout.server.engine import ServerEngine

MODEL = {"model": small().model.model_dump()}  # the one the server holds


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Policy, ServerEngine]]:
    """Yield a policy that has moved, and its engine behind a server that has its weights."""
    root = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(secret.VARIABLE, str(root / "token"))
        with served(root, HfBackend(small(), torch.device("cpu"))) as (_, address):
            moved = policy()
            move(moved)
            found = engine(root, moved, address)
            found.sync_weights(1)
            yield moved, found
            found.close()


@pytest.mark.parametrize(
    "preset",
    [
        "dapo-dynamic",
        "echo-rollout",
        "hapo",
        "cuts",
        "fork-temperature",
        "typical-sampling",
        "vocabulary-dropout",
        "aepo",
    ],
)
def test_a_preset_collects_behind_a_server_what_it_collects_without(pair, monkeypatch, preset):
    """Given tokens, likeliest tokens, moments and every kind of modifier travel, also in parts."""
    monkeypatch.setattr(job, "PART_TOKENS", 30)
    moved, found = pair
    config = config_of(preset, **MODEL)
    ours = HfEngine(moved)
    ours.sync_weights(1)
    alike(collect(config, moved, found), collect(config, moved, ours), mean=0.0, most=0.0)
