"""A limit on request bodies before Django spools them to disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

FORM_OVERHEAD = 1 << 20  # boundaries and the other fields of an upload


class BodyLimit:
    """Answers 413 to a body that says it is too large, and hangs up on one that turns out to be."""

    def __init__(self, app: App, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes + FORM_OVERHEAD

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.max_bytes:
            await self._refuse(send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            return {"type": "http.disconnect"} if seen > self.max_bytes else message

        await self.app(scope, counted, send)

    async def _refuse(self, send: Send) -> None:
        limit = f"{(self.max_bytes - FORM_OVERHEAD) // 2**20} MB"
        text = f"The upload is larger than {limit}; split it, or ask an admin to raise ISENTROPE_UPLOAD_MB."
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})
