"""Length-prefixed JSON over pipes: four bytes of size, then ASCII JSON (lone surrogates survive as escapes)."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

SIZE = struct.Struct("<I")
MAX_MESSAGE = 64 << 20  # bytes; a longer one means the other side is broken


def encode(message: Any) -> bytes:
    """Return the message with its size in front."""
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    return SIZE.pack(len(body)) + body


def take(buffer: bytearray) -> list[Any]:
    """Remove every whole message from the front of `buffer` and return them; raise ValueError on foreign bytes."""
    found, at = [], 0
    while len(buffer) - at >= SIZE.size:
        (size,) = SIZE.unpack_from(buffer, at)
        if size > MAX_MESSAGE:
            raise ValueError(f"a message of {size} bytes is no message")
        end = at + SIZE.size + size
        if end > len(buffer):
            break
        found.append(json.loads(buffer[at + SIZE.size : end]))
        at = end
    del buffer[:at]
    return found


def read(descriptor: int) -> Any | None:
    """Wait for one message and return it; None where the other side has closed the pipe."""
    head = _exactly(descriptor, SIZE.size)
    body = _exactly(descriptor, SIZE.unpack(head)[0]) if head else None
    return None if body is None else json.loads(body)


def write(descriptor: int, message: Any) -> None:
    """Write one message; raise OSError where the other side has gone."""
    left = memoryview(encode(message))
    while left:
        left = left[os.write(descriptor, left) :]


def _exactly(descriptor: int, size: int) -> bytes | None:
    found = bytearray()
    while len(found) < size:
        piece = os.read(descriptor, size - len(found))
        if not piece:
            return None
        found += piece
    return bytes(found)
