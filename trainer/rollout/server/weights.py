"""Weights on their way from a trainer to a server through a folder that both see: safetensors under a version.

A version is a folder, built under a temporary name and renamed when whole, so a reader finds all of it or nothing. What
modules share (tied embeddings) is written once, under its first name.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import ConfigError, RunFailed
from trainer.stream import disk_errors

if TYPE_CHECKING:
    from torch import Tensor

FILE_BYTES = 2 << 30  # of one file: how much is in memory twice while it is written
LONGEST_HEADER = 100 << 20  # bytes, as safetensors itself allows


def place(home: Path, version: int) -> Path:
    """Return the folder of a version."""
    return home / f"version-{version:08d}"


def write(home: Path, version: int, tensors: Mapping[str, Tensor]) -> Path:
    """Write a version under `home` and return its folder; older versions go. On a full disk raises ResourceError."""
    from safetensors.torch import save_file

    target = place(home, version)
    temporary = home / f".tmp-{target.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with disk_errors(target):
            temporary.mkdir(parents=True)
            for number, part in enumerate(_parts(tensors)):
                whole = {name: tensor.cpu().contiguous() for name, tensor in part.items()}
                save_file(whole, temporary / f"part-{number:05d}.safetensors")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in home.glob("version-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def read(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a version by name; raises RunFailed where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("part-*.safetensors"))
    if not files:
        raise RunFailed(f"there are no weights in {folder}; trainer and rollout server must see the same folder")
    try:
        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # not a dict
                    yield name, opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"the weights in {folder} cannot be read ({error})") from error


def digest(model: Path) -> str:
    """Return a fingerprint of a model folder's architecture: names and shapes of its tensors, not their values."""
    shapes = sorted(
        (name, entry["shape"]) for file in model.glob("*.safetensors") for name, entry in _header(file).items()
    )
    if not shapes:
        raise ConfigError(f"model.source: there are no safetensors in {model}", "model.source")
    return sha256(json.dumps(shapes).encode()).hexdigest()[:32]


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        found = json.loads(opened.read(min(size, LONGEST_HEADER)))
    return {name: entry for name, entry in found.items() if name != "__metadata__"}


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > FILE_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    yield part
