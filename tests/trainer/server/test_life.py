"""The server process of a run: it comes and goes with the run, whoever is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.runs import events, make, metrics, start
from tests.trainer.server.serving import configured, move, policy, requests
from trainer.distributed import World
from trainer.errors import ConfigError, ResourceError
from trainer.rollout.hf import HfEngine
from trainer.rollout.server.engine import ServerEngine
from trainer.rollout.server.launcher import Card, Launcher


def lives(pid: int) -> bool:
    """Return whether a process is there; a zombie is not alive, but it is there."""
    return Path(f"/proc/{pid}").exists()


def until(condition: Callable[[], object], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def test_a_server_killed_in_the_middle_is_started_again_and_gives_the_same(tmp_path, monkeypatch):
    config, moved = configured(), policy()
    move(moved)
    found = ServerEngine(config, moved, World(cpu=True), make(tmp_path, config))
    try:
        found.sync_weights(5)
        asked = [replace(one, max_new=48) for one in requests(6)]
        first, heard = found.client.welcome["pid"], {}

        def kill_once(chunks) -> None:
            if found.restarts == 0 and lives(first):
                os.kill(first, signal.SIGKILL)
            for chunk in chunks:
                heard.setdefault(chunk.id, []).append((chunk.first, chunk.ids))

        done = found.run(asked, kill_once)
        assert found.restarts == 1
        assert not lives(first), "killed and reaped"
        ours = HfEngine(moved)
        ours.sync_weights(5)
        assert done == ours.run(asked)
        for request, generation in zip(asked, done, strict=True):  # told once, without a gap
            at = len(request.prefix_ids)
            for begins, ids in heard[request.id]:
                assert begins == at
                at += len(ids)
            assert [token for _, ids in heard[request.id] for token in ids] == generation.ids

        def fails(self) -> Card:
            raise ResourceError("no room for a server")

        monkeypatch.setattr(Launcher, "start", fails)
        second = found.client.welcome["pid"]
        with pytest.raises(ResourceError, match="no room for a server"):
            found.run(asked, lambda chunks: lives(second) and os.kill(second, signal.SIGKILL))
    finally:
        found.close()
    assert not lives(second)


def test_what_keeps_a_server_from_starting_is_said_as_the_config_fault_it_is(tmp_path):
    config = configured()
    folder = make(tmp_path, config)
    folder.config.write_text(config.model_dump_json().replace("builtin:countdown-tiny", "builtin:nothing"))
    launcher = Launcher(config, folder)
    with pytest.raises(ConfigError, match="could not start: there is no builtin:nothing") as caught:
        launcher.start()
    assert caught.value.field == "model.source"
    assert launcher.process is None


def test_a_killed_trainer_leaves_a_server_that_the_next_attempt_finds_and_ends(tmp_path):
    config = configured()
    config = config.model_copy(update={"optimiser": config.optimiser.model_copy(update={"steps": 400})})
    folder = make(tmp_path, config)
    trainer = start(folder)
    until(lambda: folder.events.exists() and any(event["step"] >= 4 for event in events(folder, "metrics")))
    trainer.kill()
    trainer.wait()
    card = Launcher(config, folder).card()
    assert card
    assert lives(card.pid), "it waits for the next attempt"
    folder.control.write_text('{"seq": 1, "stop": true}')
    again = start(folder)
    assert again.wait(180) == 0, folder.log.read_text()
    assert metrics(folder)
    log = folder.server_log.read_text()
    assert log.count("serving") == 1, log
    assert log.count("connected") >= 2
    until(lambda: not lives(card.pid))
    assert Launcher(config, folder).card() is None


def test_a_server_is_given_the_gpus_behind_the_trainers(tmp_path, monkeypatch):
    config = configured(gpus=1)
    config = config.model_copy(update={"resources": config.resources.model_copy(update={"gpus": 2})})
    launcher = Launcher(config, make(tmp_path, config))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    for visible, own in ((None, "2"), ("4,5,7", "7"), ("GPU-a,GPU-b,GPU-c", "GPU-c")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        given = launcher._environment()
        assert given["CUDA_VISIBLE_DEVICES"] == own
        assert not {"RANK", "MASTER_PORT"} & given.keys(), "the server is no member of the trainer's group"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ResourceError, match="needs 3 GPUs"):
        launcher._environment()
