"""A checkpoint as one uncompressed tar, streamed: what `from_pretrained` needs, without the trainer's own state."""

from __future__ import annotations

import asyncio
import os
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512
CHUNK = 1 << 20
PRIVATE = "trainer_state"


@dataclass(frozen=True)
class Member:
    """One file of the archive: its name in the tar, where it lies and its size when the archive was planned."""

    name: str
    path: Path
    size: int
    modified: float

    @property
    def header(self) -> bytes:
        info = tarfile.TarInfo(self.name)
        info.size, info.mtime, info.mode = self.size, int(self.modified), 0o644
        return info.tobuf(tarfile.PAX_FORMAT)

    @property
    def padding(self) -> int:
        return -self.size % BLOCK


def members(folder: Path, prefix: str) -> list[Member]:
    """Return the files of a checkpoint folder under safe names; links, hidden files and trainer state are left out.

    Raises FileNotFoundError where the checkpoint is not there or not whole: it exists when its manifest does.
    """
    (folder / "manifest.json").stat()
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != PRIVATE and not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            if name.startswith(".") or path.is_symlink() or not path.is_file():
                continue
            status = path.stat()
            inside = path.relative_to(folder).as_posix()
            found.append(Member(f"{prefix}/{inside}", path, status.st_size, status.st_mtime))
    return found


def length(files: list[Member]) -> int:
    """Return the bytes of the whole archive."""
    return sum(len(member.header) + member.size + member.padding for member in files) + 2 * BLOCK


async def stream(files: list[Member]) -> AsyncIterator[bytes]:
    """Yield the archive. All files are opened first, so pruning the checkpoint meanwhile does not tear it.

    Raises OSError where a file became shorter: the download breaks off instead of ending with a wrong archive.
    """
    handles = [member.path.open("rb") for member in files]
    try:
        for member, handle in zip(files, handles, strict=True):
            yield member.header
            left = member.size
            while left:
                # A thread reads, so that a slow disk holds up nobody else.
                data = await asyncio.to_thread(handle.read, min(CHUNK, left))
                if not data:
                    raise OSError(f"{member.name} became shorter while it was sent")
                left -= len(data)
                yield data
            if member.padding:
                yield bytes(member.padding)
        yield bytes(2 * BLOCK)
    finally:
        for handle in handles:
            handle.close()
