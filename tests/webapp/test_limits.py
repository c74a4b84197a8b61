"""Bodies too large never reach the disk."""

from __future__ import annotations

import pytest

from webapp.limits import FORM_OVERHEAD, BodyLimit

LIMIT = 1000


async def call(headers: list[tuple[bytes, bytes]], chunks: list[bytes]) -> tuple[list[dict], list[dict]]:
    """Send a request through the limit; return (what the app received, what the client got)."""
    inbox = [
        {"type": "http.request", "body": chunk, "more_body": at + 1 < len(chunks)} for at, chunk in enumerate(chunks)
    ]
    received, sent = [], []

    async def receive():
        return inbox.pop(0)

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        while True:
            received.append(await receive())
            if not received[-1].get("more_body"):
                break

    await BodyLimit(app, LIMIT)({"type": "http", "headers": headers}, receive, send)
    return received, sent


async def test_what_fits_passes():
    received, sent = await call([(b"content-length", b"6")], [b"abc", b"def"])
    assert [message["body"] for message in received] == [b"abc", b"def"]
    assert not sent


@pytest.mark.parametrize("length", [b"99999999", b"-1", b"many"])
async def test_a_body_announced_too_large_is_refused_unread(length):
    received, sent = await call([(b"content-length", length)], [b"abc"])
    assert not received
    assert sent[0]["status"] == 413
    assert b"ISENTROPE_UPLOAD_MB" in sent[1]["body"]


async def test_a_body_that_grows_too_large_is_cut_off():
    half = b"x" * (LIMIT + FORM_OVERHEAD)
    received, _ = await call([], [half, half])
    assert [message["type"] for message in received] == ["http.request", "http.disconnect"]
