"""Link: a socket that carries frames, for either side; several threads may send, one receives."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Any

from trainer.errors import ConfigError, ResourceError, RunFailed, TrainerError
from trainer.rollout.server.frame import Frame, FrameError, decode
from trainer.rollout.server.messages import Columns

STUCK = 60  # seconds after which a peer that takes nothing any more counts as gone
PIECE = 1 << 20  # bytes read at once, so that a lie about a message's size takes no memory

KINDS: dict[str, type[TrainerError]] = {"resource": ResourceError, "run": RunFailed}


class Gone(Exception):
    """The peer is not there any more: closed, silent for too long, or hung."""


class Link:
    """A connection. Everything that ends it raises Gone, what is no message FrameError."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.trusted = False  # until the peer has proved itself, it may send little
        self._sending = threading.Lock()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", STUCK, 0))
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, header: dict[str, Any], columns: Columns | None = None) -> None:
        """Send one message."""
        data = Frame(header, columns or {}).encode()
        try:
            with self._sending:
                self.connection.sendall(data)
        except OSError as error:
            raise Gone(f"the connection broke ({error})") from error

    def receive(self, seconds: float | None = None) -> Frame:
        """Return the next message; Gone where nothing comes for so many seconds, or ever again."""
        try:
            self.connection.settimeout(seconds)
            return decode(self._read, trusted=self.trusted)
        except TimeoutError as error:
            raise Gone(f"nothing was heard for {seconds:g} seconds") from error
        except OSError as error:
            raise Gone(f"the connection broke ({error})") from error

    def _read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            piece = self.connection.recv(min(size - len(found), PIECE))
            if not piece:
                raise Gone("the connection was closed")
            found += piece
        return bytes(found)

    def close(self) -> None:
        """Close the connection; who waits for a message on the other side or in another thread is told."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def told(error: BaseException) -> dict[str, Any]:
    """Return an error as header fields of an `error` message."""
    kind = next((name for name, cls in KINDS.items() if isinstance(error, cls)), "other")
    if isinstance(error, ConfigError):
        kind = "config"
    text = str(error) if isinstance(error, TrainerError | FrameError) else f"{type(error).__name__}: {error}"
    return {"kind": kind, "message": (text or "no message")[:2000], "field": getattr(error, "field", "")}


def heard(header: dict[str, Any]) -> TrainerError:
    """Return the error that an `error` message tells of."""
    message, field = str(header.get("message", "no reason was given")), str(header.get("field", ""))
    if header.get("kind") == "config":
        return ConfigError(message, field)
    return KINDS.get(str(header.get("kind")), RunFailed)(message, field)
