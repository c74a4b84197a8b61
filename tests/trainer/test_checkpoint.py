"""Checkpoints: a killed run goes on bit for bit, broken ones are not trusted, and any tool can load them."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.runs import events, make, metrics, small, start, train
from trainer import checkpoint
from trainer.errors import ResourceError, RunFailed
from trainer.events import RunFolder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    """A run of six steps with checkpoints after 2, 4 and 6."""
    folder = make(tmp_path_factory.mktemp("run"), small(checkpoint={"every_steps": 2}))
    train(folder)
    return folder


def copied(folder: RunFolder, path: Path) -> RunFolder:
    shutil.copytree(folder.path, path)
    return RunFolder(path)


def same_weights(a: RunFolder, b: RunFolder, step: int) -> bool:
    one, other = (load_file(folder.checkpoint(step) / "model.safetensors") for folder in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"lora": {"enabled": True, "rank": 4, "dropout": 0.1}}, "optimiser": {"minibatches_per_step": 2}},
        {"model": {"dtype": "bfloat16"}, "objective": {"preset": "entropy-target"}},
    ],
    ids=["full", "lora", "bfloat16 with a controller"],
)
def test_stopping_and_resuming_is_the_same_as_not_stopping(tmp_path, changes):
    whole, parts = make(tmp_path / "whole", small(**changes)), make(tmp_path / "parts", small(**changes))
    train(whole)
    train(parts, prepare=lambda trainer: stop_before(trainer, 4))
    assert train(parts, attempt=2)[0] == "finished"
    assert events(parts, "started")[1]["resume_step"] == 3
    assert metrics(whole) == metrics(parts)
    assert same_weights(whole, parts, 6)


def stop_before(trainer, step: int) -> None:
    """Ask for a stop when a step is about to begin."""
    listen = trainer._listen

    def listening(number: int):
        trainer.signalled = number == step
        return listen(number)

    trainer._listen = listening


def test_a_run_killed_with_sigkill_goes_on_bit_for_bit(tmp_path):
    whole, killed = make(tmp_path / "whole", small()), make(tmp_path / "killed", small())
    train(whole)
    process = start(killed)
    while not (killed.checkpoint(3) / checkpoint.MANIFEST).exists():
        assert process.poll() is None, killed.log.read_text()
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    train(killed, attempt=2)
    assert metrics(whole) == metrics(killed)
    assert same_weights(whole, killed, 6)


def test_sigterm_finishes_the_step_and_writes_a_checkpoint(tmp_path):
    folder = make(
        tmp_path, small(optimiser={"steps": 500}, checkpoint={"every_steps": 0}, evaluation={"every_steps": 0})
    )
    process = start(folder)
    while not (folder.events.exists() and events(folder, "metrics")):
        assert process.poll() is None, folder.log.read_text()
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert json.loads(folder.exit.read_text())["status"] == "interrupted"
    last = events(folder, "metrics")[-2]["step"]
    assert checkpoint.problem(folder.checkpoint(last)) == ""
    assert events(folder)[-1]["status"] == "interrupted"


def test_a_checkpoint_loads_with_transformers_alone(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = finished.checkpoint(6)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    out = model.generate(**tokenizer("129=12:", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(out[0], skip_special_tokens=True).startswith("129=12:")


def test_a_lora_checkpoint_holds_merged_weights_and_the_adapter(tmp_path):
    from transformers import AutoModelForCausalLM

    folder, found = make(tmp_path, small(model={"lora": {"enabled": True}}, optimiser={"learning_rate": 1e-2})), {}
    train(folder, prepare=lambda trainer: found.update(policy=trainer.policy))
    ids = torch.randint(3, 18, (2, 9))
    merged = AutoModelForCausalLM.from_pretrained(folder.checkpoint(6))
    with torch.no_grad():
        theirs = merged(ids).logits
        assert torch.allclose(theirs, found["policy"].lm(ids).logits, atol=1e-4)
        with found["policy"].base():
            assert not torch.allclose(theirs, found["policy"].lm(ids).logits, atol=1e-2)
    assert (folder.checkpoint(6) / "adapter/adapter_model.safetensors").exists()


def test_only_the_newest_are_kept(tmp_path):
    folder = make(tmp_path, small(checkpoint={"every_steps": 1, "keep": 2}))
    train(folder)
    assert [path.name[-1] for path in checkpoint.existing(folder)] == ["6", "5"]
    assert [event["path"][-1] for event in events(folder, "checkpoint_removed")] == ["1", "2", "3", "4"]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    file = folder.checkpoint(6) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[random.randrange(len(content))] ^= 1
    file.write_bytes(content)
    assert train(folder, attempt=2)[0] == "finished"
    assert events(folder, "started")[-1]["resume_step"] == 4
    assert "step-00000006" in events(folder, "warning")[-1]["message"]
    assert same_weights(finished, folder, 6)


def test_a_folder_without_a_manifest_is_no_checkpoint(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    (folder.checkpoint(6) / checkpoint.MANIFEST).unlink()
    assert checkpoint.newest(folder)[0] == folder.checkpoint(4)


def test_a_run_never_silently_starts_again_at_zero(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    for path in checkpoint.existing(folder):
        (path / checkpoint.TENSORS).write_bytes(b"")
    with pytest.raises(RunFailed, match="no checkpoint can be resumed from"):
        train(folder, attempt=2)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(finished, tmp_path, monkeypatch):
    folder = copied(finished, tmp_path / "run")
    before = sorted(path.name for path in folder.checkpoints.iterdir())

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", full)
    monkeypatch.setattr(checkpoint, "newest", lambda folder: (None, []))
    with pytest.raises(ResourceError, match="full"):
        train(folder, attempt=2)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == before


def test_what_a_killed_write_left_is_cleared(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    (folder.checkpoints / ".tmp-step-00000009-1").mkdir()
    shutil.rmtree(folder.checkpoint(6))
    train(folder, attempt=2)
    assert all(path.name.startswith("step-") for path in folder.checkpoints.iterdir())
