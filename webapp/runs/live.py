"""The one writer of channel messages. Rows are written first, published second: a missed message is only a late one."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, Literal, TypedDict

from channels.layers import get_channel_layer

log = logging.getLogger(__name__)

STREAM_LENGTH = 4000  # entries of a live stream; a viewer who falls further behind skips ahead
STREAM_SECONDS = 3600  # a stream nobody writes to is forgotten
MAX_PENDING = 200  # notifications under way while the broker is slow; more are dropped


class Changed(TypedDict):
    """Something about the run is new: look at its row and its events."""

    type: Literal["run.changed"]


class SignedOut(TypedDict):
    """A session of this user ended: look whether it was yours."""

    type: Literal["user.signed_out"]


def group(run_id: str) -> str:
    """Return the channel group of a run's viewers."""
    return f"run.{run_id}"


def user_group(user_id: int) -> str:
    """Return the channel group of a person's sockets."""
    return f"user.{user_id}"


def stream(run_id: str) -> str:
    """Return the Redis key of a run's live frames; each entry's field `f` holds whole frames back to back."""
    return f"live:{run_id}"


def notify(run_id: str) -> None:
    """Tell the run's viewers to look again; callable from any thread, never blocks, never raises for a lost broker."""
    _publisher.post(group(run_id), Changed(type="run.changed"))


def notify_signed_out(user_id: int) -> None:
    """Tell a person's sockets to check their session."""
    _publisher.post(user_group(user_id), SignedOut(type="user.signed_out"))


class _Publisher:
    """Sends from a thread with its own event loop: the layer keeps one connection per loop, not one per message."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending = 0
        self._away = False

    def post(self, name: str, message: Any) -> None:
        loop = self._started()
        if self._pending >= MAX_PENDING:
            return  # the broker does not keep up; viewers look by themselves every few seconds
        with self._lock:
            self._pending += 1
        asyncio.run_coroutine_threadsafe(self._send(name, message), loop)

    async def _send(self, name: str, message: Any) -> None:
        try:
            await get_channel_layer().group_send(name, message)
            self._away = False
        # Whatever the broker's client raises, the rows are written and the viewers poll.
        except Exception as error:
            if not self._away:
                log.warning("Viewers are not notified until the broker is back: %s", error)
            self._away = True
        finally:
            with self._lock:
                self._pending -= 1

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="live-publisher", daemon=True).start()
            return self._loop


_publisher = _Publisher()
