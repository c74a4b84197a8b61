"""Frame: one message, a JSON header and named columns of numbers.

Header in JSON because it can be read in a dump and cannot run code; columns as raw little-endian numbers because most
of what travels is token ids and log-probs. The same layout as the rollout bundle of the run page, behind a fixed head
that says how long both are, so that a reader knows the size of a message before it takes room for it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAGIC = b"ISRV"
PROTOCOL = 1
HEAD = struct.Struct("<4sHHIQ")  # magic, protocol, 0, header bytes, body bytes
MAX_HEADER = 1 << 22
MAX_BODY = 1 << 30
MAX_GREETING = 1 << 14  # header bytes of a peer that has not proved itself; it sends no columns
DTYPES = frozenset({"u1", "u4", "u8", "i8", "f4", "f8"})
ALIGN = 8

Read = Callable[[int], bytes]


class FrameError(Exception):
    """What arrived is no message of ours; the connection cannot go on."""


class OtherProtocol(FrameError):
    """The peer speaks another version of the protocol."""


@dataclass(frozen=True)
class Frame:
    """A message: `header["type"]` names it, `columns` holds one-dimensional arrays by name."""

    header: dict[str, Any]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def type(self) -> str:
        return str(self.header.get("type", ""))

    def encode(self) -> bytes:
        """Return the bytes of the message; raises FrameError where it is larger than a reader accepts."""
        places: dict[str, tuple[str, int, int]] = {}
        parts: list[bytes] = []
        size = 0
        for name, values in self.columns.items():
            kind = values.dtype.str[1:]
            if kind not in DTYPES:
                raise FrameError(f"column {name} is of type {values.dtype}, which does not travel")
            data = np.ascontiguousarray(values, dtype=f"<{kind}").tobytes()
            places[name] = (kind, size, len(values))
            parts += [data, bytes(-len(data) % ALIGN)]
            size += len(data) + len(parts[-1])
        head = json.dumps({**self.header, "columns": places}, separators=(",", ":"), allow_nan=False).encode()
        if len(head) > MAX_HEADER or size > MAX_BODY:
            raise FrameError(
                f"a message of {len(head)} + {size} bytes is too long; the limits are {MAX_HEADER} + {MAX_BODY}"
            )
        return b"".join([HEAD.pack(MAGIC, PROTOCOL, 0, len(head), size), head, *parts])


def decode(read: Read, *, trusted: bool = True) -> Frame:
    """Return the next message; `read(n)` gives exactly n bytes. Raises FrameError for anything else.

    A peer that is not `trusted` yet may send a short header and nothing else.
    """
    magic, protocol, zero, header_size, body_size = HEAD.unpack(read(HEAD.size))
    if magic != MAGIC or zero:
        raise FrameError("the peer does not speak the rollout server's protocol")
    if protocol != PROTOCOL:
        raise OtherProtocol(
            f"the peer speaks version {protocol} of the rollout server's protocol, this side version {PROTOCOL}; "
            "install the same version of Isentrope on both sides"
        )
    if header_size > (MAX_HEADER if trusted else MAX_GREETING) or body_size > (MAX_BODY if trusted else 0):
        raise FrameError(f"a message of {header_size} + {body_size} bytes is longer than allowed")
    header = _header(read(header_size))
    places = header.pop("columns", {})
    return Frame(header, _columns(places, read(body_size)) if body_size or places else {})


def _header(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FrameError("a message's header is no JSON") from error
    if not isinstance(header, dict) or not isinstance(header.get("type"), str):
        raise FrameError("a message's header has no type")
    return header


def _columns(places: Any, body: bytes) -> dict[str, np.ndarray]:
    if not isinstance(places, dict):
        raise FrameError("a message's columns are no object")
    found = {}
    for name, place in places.items():
        try:
            kind, offset, count = place
            if kind not in DTYPES or not (isinstance(offset, int) and isinstance(count, int)):
                raise ValueError(place)
            if not 0 <= offset <= len(body) or not 0 <= count <= len(body):
                raise ValueError(place)
            found[name] = np.frombuffer(body, f"<{kind}", count, offset) if count else np.zeros(0, f"<{kind}")
        except (TypeError, ValueError) as error:
            raise FrameError(f"column {str(name)[:80]} does not lie within its message") from error
    return found
