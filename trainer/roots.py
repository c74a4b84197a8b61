"""Which paths a config may name: only what lies under a root an admin has declared, after every link is followed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import ConfigError


def home() -> Path:
    """Return the folder that holds what the product itself has written ($ISENTROPE_HOME, else the user's cache)."""
    declared = os.environ.get("ISENTROPE_HOME")
    return Path(declared) if declared else Path.home() / ".cache" / "isentrope"


def declared(variable: str) -> tuple[Path, ...] | None:
    """Return the roots in an environment variable, or None where it is unset: then any path may be named."""
    return tuple(Path(entry).expanduser() for entry in os.environ.get(variable, "").split(os.pathsep) if entry) or None


def locate(source: str, roots: Sequence[Path] | None, *, field: str, variable: str) -> Path:
    """Return the existing path that `source` names, absolute or relative to a root.

    With roots None a relative path starts at the working directory. Raises ConfigError where there is nothing, or
    nothing under a root.
    """
    if "\0" in source:
        raise ConfigError("a path cannot hold a zero byte", field)
    if roots is None:
        path = Path(source).expanduser().resolve()
        if source and path.exists():
            return path
        fix = "name an absolute path, or one that starts at the working directory"
        raise ConfigError(f"there is no {source or 'path'}; {fix}", field)
    allowed = [Path(root).resolve() for root in roots]
    for root in allowed:
        path = (root / source).resolve()  # an absolute source replaces the root and must lie under one itself
        if source and path.exists() and any(path.is_relative_to(other) for other in allowed):
            return path
    raise ConfigError(
        f"there is no {source or 'path'} under a declared root; an admin declares them in {variable}", field
    )
