"""Checkpoints: everything a run needs to go on bit for bit, in a folder that also loads with transformers alone.

    step-00000050/  model.safetensors config.json tokenizer...   the policy (LoRA: merged), plus adapter/ for LoRA
                    trainer_state/state.json tensors.pt          step, knobs, controllers, totals; moments, masters, RNG
                    manifest.json                                size and SHA-256 of every file, written last

The folder is built under a temporary name, synced and renamed, so a checkpoint is whole or absent. Resuming trusts only
manifests that verify, falls back to the one before, and never starts from zero where a checkpoint was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.errors import RunFailed
from trainer.events import RunFolder
from trainer.policy import Policy
from trainer.stream import disk_errors

MANIFEST = "manifest.json"
STATE, TENSORS = Path("trainer_state/state.json"), Path("trainer_state/tensors.pt")
ADAPTER = "adapter"


def save(folder: RunFolder, step: int, policy: Policy, state: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """Write the checkpoint of a step and return its folder; on a full disk raises ResourceError and leaves nothing.

    `state` is plain JSON; `tensors` holds tensors, numbers, lists and dicts only.
    """
    target = folder.checkpoint(step)
    temporary = folder.checkpoints / f".tmp-{target.name}-{os.getpid()}"
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    clear_temporary(folder)
    try:
        with disk_errors(target):
            temporary.mkdir()
            _write_model(policy, temporary)
            (temporary / STATE).parent.mkdir()
            (temporary / STATE).write_text(json.dumps(state), "utf-8")
            torch.save(tensors, temporary / TENSORS)
            _seal(temporary, step)
            _replace(temporary, target)
    except RuntimeError as error:  # torch.save reports a full disk in its own words
        if "file write failed" in str(error) or "No space left" in str(error):
            from trainer.errors import ResourceError

            raise ResourceError(
                f"the disk that holds {folder.path} is full; free some space and resume the run"
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _write_model(policy: Policy, path: Path) -> None:
    if policy.adapted is None:
        policy.lm.save_pretrained(path, state_dict=policy.placement.state_dict(policy.lm))
    else:
        policy.lm.save_pretrained(path, state_dict=merged(policy))
        policy.adapted.save_pretrained(path / ADAPTER)
    policy.tokenizer.save_pretrained(path)


@torch.no_grad()
def merged(policy: Policy) -> dict[str, torch.Tensor]:
    """Return the weights with the adapters added in, under the base model's names; the model itself is left alone."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in policy.lm.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in policy.lm.named_modules():
        if isinstance(module, BaseTunerLayer):
            weight = found[f"{name}.weight"]
            found[f"{name}.weight"] = weight + module.get_delta_weight("default").to(weight)  # type: ignore[attr-defined]
    return found


def _seal(path: Path, step: int) -> None:
    """Sync every file to the disk, then write the manifest."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    entries = {}
    for file in files:
        _sync(file)
        entries[str(file.relative_to(path))] = {"bytes": file.stat().st_size, "sha256": digest(file)}
    (path / MANIFEST).write_text(json.dumps({"step": step, "files": entries}, indent=1), "utf-8")
    _sync(path / MANIFEST)
    for directory in {file.parent for file in files} | {path}:
        _sync(directory)


def _replace(temporary: Path, target: Path) -> None:
    """Rename a finished folder into place; one that is there already (of an abandoned attempt) gives way."""
    old = target.with_name(f".tmp-old-{target.name}")
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear_temporary(folder: RunFolder) -> None:
    """Remove what a killed attempt left half-written."""
    for path in folder.checkpoints.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def existing(folder: RunFolder) -> list[Path]:
    """Return the checkpoint folders, newest first."""
    return sorted((path for path in folder.checkpoints.glob("step-*") if path.is_dir()), reverse=True)


def problem(path: Path) -> str:
    """Return what is wrong with a checkpoint, or "" where every file is as its manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        for name, entry in manifest["files"].items():
            if (path / name).stat().st_size != entry["bytes"]:
                return f"{name} has another size than its manifest says"
            if digest(path / name) != entry["sha256"]:
                return f"{name} has another checksum than its manifest says"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read: {error}"
    return ""


def newest(folder: RunFolder) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that verifies, and complaints about newer ones that do not.

    None means that no checkpoint was ever written. Raises RunFailed where there are some and none verifies.
    """
    complaints: list[str] = []
    for path in existing(folder):
        wrong = problem(path)
        if not wrong:
            return path, complaints
        complaints.append(f"checkpoint {path.name} is not used: {wrong}")
    if complaints:
        raise RunFailed(
            f"no checkpoint can be resumed from; {complaints[0]}; restore one from a backup or start a new run"
        )
    return None, complaints


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (state, tensors) of a checkpoint; tensors are read without running any code from the file."""
    state = json.loads((path / STATE).read_text("utf-8"))
    return state, torch.load(path / TENSORS, weights_only=True, map_location="cpu", mmap=True)  # read as it is copied


def prune(folder: RunFolder, keep: int) -> list[Path]:
    """Remove all but the newest `keep` checkpoints and return what was removed."""
    removed = existing(folder)[keep:]
    for path in removed:
        gone = path.with_name(f".tmp-old-{path.name}")
        os.replace(path, gone)  # first out of sight: a reader sees a whole checkpoint or none
        shutil.rmtree(gone, ignore_errors=True)
    return removed


def size(path: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def rng_state() -> dict[str, Any]:
    """Return the state of every random number generator of this process."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every random number generator of this process back."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
