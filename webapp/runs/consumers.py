"""The run page's websocket: sends what the client missed, then what arrives. Its one wish becomes a row.

Two tasks read by cursor, rows from PostgreSQL and live frames from the Redis stream, and send no faster than the
client takes. A notification only wakes the first one, so many of them cost one look and memory stays bounded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import redis.asyncio as aioredis
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.signals import user_logged_out
from django.dispatch import receiver
from django.utils.crypto import constant_time_compare
from redis.exceptions import RedisError

from webapp.accounts.models import User
from webapp.runs import live, watching
from webapp.runs.messages import EVENTS_PER_MESSAGE, events_after, run_message
from webapp.runs.models import Run

log = logging.getLogger(__name__)

CLOSE_SIGNED_OUT = 4401
CLOSE_GONE = 4404
CLOSE_ERROR = 1011
MAX_TEXT = 4096  # characters of a client message
MAX_BINARY = 256 * 1024  # bytes of frames in one message, if one entry is not larger
STREAM_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)
START = "0-0"


@dataclass(frozen=True)
class Hello:
    """Where the client stands: the last event it has, and the newest live entry."""

    after: int
    live: str


@dataclass(frozen=True)
class Wish:
    """The group that the viewer wants to see growing; None wants what is shown unasked."""

    group: int | None


def parse(text: str) -> Hello | Wish:
    """Read a client message; raise ValueError with a sentence for anything that is not understood."""
    if len(text) > MAX_TEXT:
        raise ValueError("The message is too long.")
    try:
        message = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError("The message is not JSON.") from error
    kind = message.get("type") if isinstance(message, dict) else None
    if kind == "hello":
        return _hello(message)
    if kind == "watch":
        return _wish(message)
    raise ValueError("The only messages understood are hello and watch.")


def _hello(message: dict[str, Any]) -> Hello:
    after, cursor = message.get("after", 0), message.get("live") or START
    if type(after) is not int or not 0 <= after < 2**63:
        raise ValueError("after: expected the number of an event.")
    if not isinstance(cursor, str) or not STREAM_ID.fullmatch(cursor):
        raise ValueError("live: expected the id of a stream entry.")
    return Hello(after, cursor)


def _wish(message: dict[str, Any]) -> Wish:
    group = message.get("group")
    if group is not None and (type(group) is not int or not 0 <= group < 2**31):
        raise ValueError("group: expected the number of a group, or null.")
    return Wish(group)


class RunConsumer(AsyncWebsocketConsumer):
    """One viewer of one run."""

    recheck_seconds = 60.0
    poll_seconds = 5.0  # a lost notification costs at most this
    pause_seconds = 0.1  # at most ten looks a second
    renew_seconds = watching.WISH.total_seconds() / 3

    async def connect(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.wishing: asyncio.Task[None] | None = None
        self.viewer = secrets.token_urlsafe(16)
        self.changed = asyncio.Event()
        self.run_id: str = self.scope["url_route"]["kwargs"]["run_id"]
        self.groups_joined = [live.group(self.run_id)]
        if await self._visible_run() is None:
            await self.close()
            return
        self.groups_joined.append(live.user_group(self.scope["user"].pk))
        for name in self.groups_joined:
            await self.channel_layer.group_add(name, self.channel_name)
        await self.accept()
        self._spawn(self._guard())

    async def disconnect(self, code: int) -> None:
        for task in self.tasks:
            task.cancel()
        for name in self.groups_joined:
            await self.channel_layer.group_discard(name, self.channel_name)
        if self.wishing:
            self.wishing.cancel()
            await _in_thread(lambda: watching.forget(self.viewer))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        try:
            message = parse(text_data or "")
        except ValueError as error:
            await self._send_json({"type": "error", "message": str(error)})
            return
        if isinstance(message, Wish):
            self._wish(message)
            return
        # A later hello starts both readers over: the page woke up, or came back.
        for task in self.tasks[1:]:
            task.cancel()
        del self.tasks[1:]
        self._spawn(self._send_rows(message.after))
        self._spawn(self._send_frames(message.live))

    async def run_changed(self, message: live.Changed) -> None:
        self.changed.set()

    async def user_signed_out(self, message: live.SignedOut) -> None:
        # The signal precedes the removal of the session by a moment.
        await asyncio.sleep(1)
        await self._close_if_signed_out()

    async def _send_rows(self, after: int) -> None:
        """Send the run's state when it differs from what was sent, and every event after the cursor, for ever."""
        sent: dict[str, Any] | None = None
        while True:
            self.changed.clear()
            message = await self._run_message()
            if message is None:
                await self.close(CLOSE_GONE)
                return
            if message != sent:
                await self._send_json({"type": "run", "run": message})
                sent = message
            after = await self._send_events(after)
            await asyncio.sleep(self.pause_seconds)
            try:
                await asyncio.wait_for(self.changed.wait(), self.poll_seconds)
            except TimeoutError:
                continue

    async def _send_events(self, after: int) -> int:
        while events := await self._events(after):
            after = events[-1]["seq"]
            await self._send_json({"type": "events", "events": events, "last": after})
            if len(events) < EVENTS_PER_MESSAGE:
                break
        return after

    async def _send_frames(self, cursor: str) -> None:
        """Send live frames after the cursor, for ever; without a broker there are none."""
        key = live.stream(self.run_id)
        async with aioredis.from_url(settings.REDIS_URL, socket_timeout=15, socket_connect_timeout=5) as client:
            while True:
                try:
                    reply = await client.xread({key: cursor}, count=64, block=5000)
                except (RedisError, OSError) as error:
                    log.info("No live frames for %s: %s", self.run_id, error)
                    await asyncio.sleep(1)
                    continue
                for cursor, frames in _bundles(_entries(reply)):
                    await self.send(bytes_data=bytes([len(cursor)]) + cursor.encode() + frames)

    def _wish(self, wish: Wish) -> None:
        if self.wishing:
            self.wishing.cancel()
        self.wishing = asyncio.ensure_future(self._watch(wish.group))
        self.wishing.add_done_callback(self._ended)

    async def _watch(self, group: int | None) -> None:
        """Keep the viewer's wish alive, and say whether it is granted whenever that changes."""
        await asyncio.sleep(self.pause_seconds)  # somebody who walks through the groups asks for the last one
        if group is None:
            await _in_thread(lambda: watching.forget(self.viewer))
            await self._send_json({"type": "watch", "group": None, "refused": ""})
            return
        said: str | None = None
        while True:
            refused = await _in_thread(lambda: watching.watch(self.run_id, self.viewer, group))
            if refused != said:
                await self._send_json({"type": "watch", "group": group, "refused": refused})
                said = refused
            await asyncio.sleep(self.pause_seconds * 20 if refused else self.renew_seconds)

    async def _guard(self) -> None:
        """A socket outlives a logout or a lost role unless somebody looks."""
        while True:
            await asyncio.sleep(self.recheck_seconds)
            await self._close_if_signed_out()

    async def _close_if_signed_out(self) -> None:
        if not await self._signed_in() or await self._visible_run() is None:
            await self.close(CLOSE_SIGNED_OUT)

    async def _send_json(self, message: dict[str, Any]) -> None:
        await self.send(text_data=json.dumps(message, ensure_ascii=False, separators=(",", ":")))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._ended)
        self.tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A reader that broke closes the socket: the client comes back with its cursors."""
        if task.cancelled() or task.exception() is None:
            return
        log.error("The socket of run %s broke", self.run_id, exc_info=task.exception())
        closing = asyncio.ensure_future(self.close(CLOSE_ERROR))
        self.tasks.append(closing)

    async def _visible_run(self) -> Run | None:
        return await _in_thread(lambda: Run.objects.visible_to(self.scope["user"]).filter(pk=self.run_id).first())

    async def _run_message(self) -> dict[str, Any] | None:
        def read() -> dict[str, Any] | None:
            run = Run.objects.filter(pk=self.run_id).first()
            return run_message(run) if run else None

        return await _in_thread(read)

    async def _events(self, after: int) -> list[dict[str, Any]]:
        return await _in_thread(lambda: events_after(self.run_id, after))

    async def _signed_in(self) -> bool:
        return await _in_thread(lambda: _session_holds(self.scope["session"].session_key))


async def _in_thread(read: Any) -> Any:
    """Run database work in a thread of its own turn, so that viewers do not wait for each other."""
    return await database_sync_to_async(read, thread_sensitive=False)()


def _session_holds(key: str | None) -> bool:
    """Tell whether the session still exists and its user may still sign in with it."""
    if not key:
        return False
    session = import_module(settings.SESSION_ENGINE).SessionStore(key)
    user = (
        User.objects.filter(pk=session.get(SESSION_KEY), is_active=True).first() if session.get(SESSION_KEY) else None
    )
    return user is not None and constant_time_compare(session.get(HASH_SESSION_KEY, ""), user.get_session_auth_hash())


def _entries(reply: Any) -> list[tuple[str, bytes]]:
    """Return (id, frames) of an XREAD reply of one stream, which is [[key, [(id, fields), …]]] or empty."""
    return [(entry_id.decode(), fields.get(b"f", b"")) for _, entries in reply for entry_id, fields in entries]


def _bundles(entries: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Join entries into messages of bounded size, each with the id of its newest entry."""
    held: list[bytes] = []
    size, newest = 0, START
    for entry_id, frames in entries:
        if held and size + len(frames) > MAX_BINARY:
            yield newest, b"".join(held)
            held, size = [], 0
        held.append(frames)
        size, newest = size + len(frames), entry_id
    if held:
        yield newest, b"".join(held)


@receiver(user_logged_out)
def _signed_out(sender: Any, request: Any, user: User | None, **kwargs: Any) -> None:
    if user is not None:
        live.notify_signed_out(user.pk)
