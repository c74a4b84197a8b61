"""Rollouts one step ahead, from a server process: what changes and what does not."""

from __future__ import annotations

import os
import signal
import threading
import time

import pyarrow.parquet as pq
import pytest

from tests.trainer.runs import events, make, metrics, small, start, train
from trainer.ahead import Ahead, Batch
from trainer.events import RunFolder
from trainer.objectives import Step
from trainer.rollout.server.launcher import Launcher

SERVER = {"enabled": True}


def versions(folder: RunFolder, step: int) -> set[int]:
    return set(pq.read_table(folder.rollout_file(step))["version"].to_pylist())


def test_behind_a_server_a_run_is_what_it_is_without(tmp_path):
    """The same tokens, rewards and evaluations, step by step; two processes share the server."""
    smooth = {"optimiser": {"epsilon": 1e-3, "steps": 3}}  # Adam's small epsilon would make steps of rounding noise
    plain, behind = (make(tmp_path / name, small(**smooth)) for name in ("plain", "behind"))
    config = small(**smooth, sampling={"server": SERVER}, resources={"processes": 2})
    behind.config.write_text(config.model_dump_json())
    process = start(behind)
    train(plain)
    assert process.wait(240) == 0, behind.log.read_text()
    ours, theirs = metrics(plain), metrics(behind)
    assert ours.keys() == theirs.keys()
    for step, values in ours.items():
        for name, value in values.items():
            assert theirs[step][name] == pytest.approx(value, abs=1e-4, rel=1e-4), (step, name)
    evaluated = [[event["values"] for event in events(folder, "evaluation")] for folder in (plain, behind)]
    assert evaluated[0] == evaluated[1]
    assert {step: theirs[step]["rollout/staleness"] for step in (1, 2, 3)} == {1: 0, 2: 0, 3: 0}
    assert max(theirs[step]["sync/probe"] for step in (1, 2, 3)) < 1e-4


def test_a_step_ahead_the_reward_rises_and_every_completion_names_its_weights(tmp_path):
    config = small(
        task={"type": "split_sum"},
        # hot, so that there is something to learn; corrected, or at this rate a policy unlearns from old samples
        sampling={
            "prompts_per_step": 16,
            "samples_per_prompt": 16,
            "temperature": 1.6,
            "server": SERVER,
            "staleness": 1,
        },
        objective={"parts": [{"type": "ppo_clip", "correction": "token"}]},
        optimiser={"steps": 20, "learning_rate": 3e-4},
        evaluation={"every_steps": 10},
        checkpoint={"every_steps": 10},
    )
    folder = make(tmp_path, config)
    assert train(folder)[0] == "finished"
    found = metrics(folder)
    assert [found[step]["rollout/staleness"] for step in range(1, 21)] == [0] + [1] * 19
    assert [versions(folder, step) for step in (1, 2, 3, 20)] == [{0}, {0}, {1}, {18}]
    rewards = [found[step]["reward/mean"] for step in range(1, 21)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.04
    assert events(folder, "started")[0]["plan"]["old_logprobs"]["choice"] == "score"
    assert found[3]["mismatch/mean_abs"] > 1e-4, "the policy has moved since it sampled"
    assert max(values.get("sync/probe", 0) for values in found.values()) < 1e-4
    assert [event["step"] for event in events(folder, "evaluation")] == [0, 10, 20]
    assert [event["seq"] for event in events(folder)] == list(range(1, len(events(folder)) + 1))


def test_two_processes_draw_ahead_together_and_find_a_new_server_when_theirs_is_killed(tmp_path):
    """Strategies and figures speak over a line of their own while gradients travel over the other."""
    config = small(
        sampling={"server": SERVER, "staleness": 1},
        objective={"preset": "dapo-dynamic"},
        resources={"processes": 2},
        optimiser={"steps": 24, "learning_rate": 1e-6},
        evaluation={"every_steps": 0},
    )
    folder, pids = make(tmp_path, config), []
    process = start(folder)
    while process.poll() is None:
        time.sleep(0.05)
        if not pids and folder.events.exists() and any(event["step"] >= 3 for event in events(folder, "metrics")):
            pids.append(Launcher(config, folder).card().pid)
            os.kill(pids[0], signal.SIGKILL)
    assert process.returncode == 0, folder.log.read_text()
    assert [metrics(folder)[step]["rollout/staleness"] for step in (1, 2, 24)] == [0, 1, 1]
    assert pids
    assert folder.server_log.read_text().count("serving") == 2
    assert Launcher(config, folder).card() is None


def test_a_stopped_run_goes_on_with_a_fresh_batch(tmp_path):
    config = small(sampling={"server": SERVER, "staleness": 1}, evaluation={"every_steps": 0}, optimiser={"steps": 4})
    folder = make(tmp_path, config)

    def stop_after_two(trainer) -> None:
        honest = trainer._listen

        def listen(step: int):
            control = honest(step)
            return control.model_copy(update={"stop": step == 3})

        trainer._listen = listen

    assert train(folder, prepare=stop_after_two)[0] == "stopped"
    assert train(folder, attempt=2)[0] == "finished"
    found = metrics(folder)
    assert [found[step]["rollout/staleness"] for step in (1, 2, 3, 4)] == [0, 1, 0, 1]
    assert [versions(folder, step) for step in (3, 4)] == [{2}, {2}]
    keys = [pq.read_table(folder.rollout_file(step))["row_key"].to_pylist() for step in (1, 2, 3, 4)]
    uninterrupted = make(tmp_path / "whole", small(evaluation={"every_steps": 0}, optimiser={"steps": 4}))
    train(uninterrupted)
    assert keys == [pq.read_table(uninterrupted.rollout_file(step))["row_key"].to_pylist() for step in (1, 2, 3, 4)]


def settings(step: int) -> Step:
    return Step(
        knobs={"temperature": 1.0}, step=step, total_steps=9, seed=0, max_completion_tokens=4, memory={"a": [1]}
    )


def test_what_is_drawn_ahead_keeps_the_settings_it_began_with():
    let_go = threading.Event()

    def collect(given: Step) -> Batch:
        let_go.wait(20)
        return Batch(given)

    ahead, now = Ahead(collect, None), settings(2)
    assert ahead.take() is None
    ahead.begin(now)
    now.knobs["temperature"] = 0.5
    now.memory["a"].append(2)
    let_go.set()
    batch = ahead.take()
    assert batch.settings.knobs == {"temperature": 1.0}
    assert batch.settings.memory == {"a": [1]}
    assert batch.times["wait"] >= 0
    assert ahead.take() is None
    ahead.drop()


def test_what_goes_wrong_in_the_thread_is_raised_where_it_is_awaited():
    def collect(given: Step) -> Batch:
        raise ConnectionError("the server is gone")

    ahead = Ahead(collect, None)
    ahead.begin(settings(2))
    with pytest.raises(ConnectionError, match="the server is gone"):
        ahead.wait()
    with pytest.raises(ConnectionError):
        ahead.take()
    ahead.drop()


def test_dropping_calls_off_and_waits_for_the_end():
    called_off, ended = threading.Event(), []

    def collect(given: Step) -> Batch:
        called_off.wait(20)
        ended.append(given.step)
        raise RuntimeError("called off")

    ahead = Ahead(collect, called_off.set)
    ahead.begin(settings(7))
    ahead.drop()
    assert ended == [7]
    ahead.drop()


def test_the_stream_takes_events_from_two_threads(tmp_path):
    from trainer.events import progress
    from trainer.stream import Stream

    folder = make(tmp_path, small())
    stream = Stream(folder, 1)

    def write(name: str) -> None:
        for step in range(200):
            stream.emit("warning", step, code=name, message="x" * 200)
            stream.frames(progress(1, step, name, step, 200))

    threads = [threading.Thread(target=write, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stream.close()
    assert [event["seq"] for event in events(folder)] == list(range(1, 401))
