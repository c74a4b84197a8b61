"""Where a policy comes from: built-ins, folders under admin-declared roots, and pinned hub snapshots.

`inspect` and `catalogue` read files only and import neither torch nor transformers, so the web process may call them;
`resolve` makes the folder exist (converts, downloads) and refuses what cannot be trained.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer import smollm2
from trainer.errors import ConfigError
from trainer.model_files import ModelInfo, inspect_folder
from trainer.roots import declared, home, locate

FIELD = "model.source"
ROOTS = "ISENTROPE_MODEL_ROOTS"
BUILTIN = Path(__file__).parent / "builtin"
HUB = re.compile(r"hub:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([A-Za-z0-9][\w./-]*)")
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "*.txt"]
MAX_CATALOGUE = 500

Kind = Literal["builtin", "folder", "hub"]


@dataclass(frozen=True)
class ResolvedModel:
    """A model folder that exists and has been looked at."""

    source: str
    path: Path
    kind: Kind
    info: ModelInfo


def resolve(source: str, roots: Sequence[Path] | None = None) -> ResolvedModel:
    """Return the model's folder, converting a built-in or downloading a hub snapshot where needed.

    `roots` are the folders under which local models may lie; None reads ISENTROPE_MODEL_ROOTS, and where that is unset
    too (the command line) any folder will do. Raises ConfigError naming what is wrong with the model.
    """
    if source == smollm2.SOURCE and not (_builtin(source) / "config.json").is_file():
        smollm2.convert(_builtin(source))
    kind, path = _place(source, roots, download=True)
    assert path is not None
    info = inspect_folder(path, source=source, kind=kind)
    if info.problems:
        raise ConfigError(f"{source}: {info.problems[0]}", FIELD)
    return ResolvedModel(source, path, kind, info)


def inspect(source: str, roots: Sequence[Path] | None = None) -> ModelInfo:
    """Return what is known of a model without converting, downloading or importing anything.

    Never raises: what forbids the model's use stands in `problems`.
    """
    try:
        kind, path = _place(source, roots, download=False)
    except ConfigError as error:
        return ModelInfo(source=source, kind=source.partition(":")[0], problems=[str(error)])
    if source == smollm2.SOURCE and not (_builtin(source) / "config.json").is_file():
        return smollm2.announced(_builtin(source))
    if path is None:
        return ModelInfo(source=source, kind=kind, notes=["downloaded from the hub when the run starts"])
    info = inspect_folder(path, source=source, kind=kind)
    revision = source.rpartition("@")[2]
    if kind == "hub" and not COMMIT.fullmatch(revision):
        info.notes.append(f"the revision {revision} is a name that can move; a 40-digit commit cannot")
    return info


def catalogue(roots: Sequence[Path] | None = None) -> list[ModelInfo]:
    """Return the built-ins and every model folder under the roots, three levels deep; broken ones name why."""
    names = sorted(path.parent.name for path in BUILTIN.glob("*/config.json"))
    found = [inspect(f"builtin:{name}") for name in names] + [inspect(smollm2.SOURCE)]
    for root in declared(ROOTS) or () if roots is None else roots:
        for folder in _model_folders(Path(root), depth=3):
            if len(found) >= MAX_CATALOGUE:
                return found
            found.append(inspect(str(folder), roots if roots is not None else declared(ROOTS)))
    return found


def _model_folders(root: Path, *, depth: int) -> Iterator[Path]:
    """Yield folders with a config.json, not following symlinks and not looking inside a model."""
    if (root / "config.json").is_file():
        yield root
        return
    if depth == 0 or not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
        return
    for child in sorted(root.iterdir()):
        if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
            yield from _model_folders(child, depth=depth - 1)


def _place(source: str, roots: Sequence[Path] | None, *, download: bool) -> tuple[Kind, Path | None]:
    """Return kind and folder of a source; the folder is None for a hub snapshot that is not here yet."""
    if source.startswith("builtin:"):
        return "builtin", _builtin(source)
    if source.startswith("hub:"):
        return "hub", _snapshot(source, download=download)
    return "folder", _local(source, declared(ROOTS) if roots is None else roots)


def _builtin(source: str) -> Path:
    if source == smollm2.SOURCE:
        return home() / "models" / source.partition(":")[2]
    name = source.partition(":")[2]
    folder = BUILTIN / name
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) or not folder.is_dir():
        known = ", ".join([*(f"builtin:{path.parent.name}" for path in BUILTIN.glob("*/config.json")), smollm2.SOURCE])
        raise ConfigError(f"there is no {source}; the built-ins are {known}", FIELD)
    return folder


def _local(source: str, roots: Sequence[Path] | None) -> Path:
    """Return the folder where it lies under a root after resolving every link, its files included."""
    folder = locate(source, roots, field=FIELD, variable=ROOTS)
    if not folder.is_dir():
        raise ConfigError(f"{source} is no folder; name a model folder, builtin:NAME or hub:ORG/NAME@REVISION", FIELD)
    if roots is not None:
        _refuse_escape(folder, [Path(root).resolve() for root in roots])
    return folder


def _refuse_escape(folder: Path, allowed: Sequence[Path]) -> None:
    for file in folder.iterdir():
        target = file.resolve()
        if file.is_symlink() and not any(target.is_relative_to(root) for root in allowed):
            raise ConfigError(
                f"{file.name} in {folder} is a link that leaves the model roots; copy the file instead", FIELD
            )


def _snapshot(source: str, *, download: bool) -> Path | None:
    """Return the hub cache's folder of exactly this revision; only files that cannot run code are fetched."""
    match = HUB.fullmatch(source)
    if not match:
        raise ConfigError(f"{source} must read hub:ORG/NAME@REVISION, the revision a commit or a tag", FIELD)
    name, revision = match.groups()
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        if not download:
            return None
        raise ConfigError("models from a hub need the huggingface_hub package", FIELD) from error
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, local_files_only=not download)
    except Exception as error:  # the hub client raises its own, the HTTP library's and the system's errors
        if not download:
            return None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(
            f"cannot fetch {name} at {revision} from the hub ({reason}); where no hub is reachable, put a copy under a "
            "model root and name its folder",
            FIELD,
        ) from error
    return Path(folder)
