"""The run page's socket through the real ASGI application: who may look, and that a cursor gets exactly the gap."""

from __future__ import annotations

import asyncio
import json

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from django.test import Client

from trainer.config import load
from trainer.events import KIND_TOKENS, Frame
from webapp.asgi import application
from webapp.runs import live
from webapp.runs.consumers import Hello, RunConsumer, _bundles, parse
from webapp.runs.models import WATCHED_AT_ONCE, Event, Run, State, Watch
from webapp.runs.services import run_create

pytestmark = pytest.mark.django_db(transaction=True)
HELLO = {"type": "hello", "after": 0, "live": ""}


@pytest.fixture
def run(alice):
    return run_create(user=alice, config=load({}))


def events(run: Run, first: int, last: int) -> None:
    Event.objects.bulk_create(
        Event(run=run, seq=seq, attempt=1, step=seq, type="metrics", time=run.created_at, data={"values": {"a": seq}})
        for seq in range(first, last + 1)
    )
    Run.objects.filter(pk=run.pk).update(last_seq=last)


def cookie(user, client: Client | None = None) -> bytes:
    client = client or Client()
    client.force_login(user, backend=settings.AUTHENTICATION_BACKENDS[0])
    return f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}".encode()


class Socket:
    """A browser's side of the socket."""

    def __init__(self, run_id: str, session: bytes = b"", origin: bytes = b"http://localhost") -> None:
        headers = [(b"origin", origin), (b"host", b"localhost"), (b"cookie", session)]
        scope = {"type": "websocket", "path": f"/ws/runs/{run_id}/", "query_string": b"", "subprotocols": []}
        self.inner = ApplicationCommunicator(application, {**scope, "headers": headers})

    async def __aenter__(self) -> Socket:
        await self.inner.send_input({"type": "websocket.connect"})
        self.accepted = (await self.inner.receive_output(timeout=10))["type"] == "websocket.accept"
        return self

    async def __aexit__(self, *_) -> None:
        if self.accepted:
            await self.inner.send_input({"type": "websocket.disconnect", "code": 1000})
            await self.inner.wait(timeout=10)

    async def say(self, message) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        await self.inner.send_input({"type": "websocket.receive", "text": text})

    async def until(self, kind: str) -> dict | bytes:
        """Return the next message of a kind, `frames` for binary ones."""
        while True:
            said = await self.inner.receive_output(timeout=10)
            if said["type"] == "websocket.close":
                return (
                    {"type": "close", "code": said.get("code")} if kind == "close" else pytest.fail(f"closed: {said}")
                )
            if said.get("bytes") is not None and kind == "frames":
                return said["bytes"]
            if said.get("text") and (message := json.loads(said["text"]))["type"] == kind:
                return message


async def open_socket(run: Run, user) -> Socket:
    return Socket(run.pk, await sync_to_async(cookie)(user))


async def test_hello_brings_the_state_and_every_event(run, alice):
    await sync_to_async(events)(run, 1, 3)
    async with await open_socket(run, alice) as socket:
        await socket.say(HELLO)
        state = (await socket.until("run"))["run"]
        assert (state["id"], state["state"], state["last_seq"], state["eta_seconds"]) == (run.pk, "draft", 3, None)
        missed = await socket.until("events")
        assert [event["seq"] for event in missed["events"]] == [1, 2, 3]
        assert missed["events"][0]["values"] == {"a": 1}
        assert missed["last"] == 3


async def test_a_cursor_gets_exactly_the_gap_in_chunks(run, alice):
    await sync_to_async(events)(run, 1, 1204)
    async with await open_socket(run, alice) as socket:
        await socket.say({**HELLO, "after": 100})
        chunks = [(await socket.until("events"))["events"] for _ in range(3)]
    assert [len(chunk) for chunk in chunks] == [500, 500, 104]
    assert [event["seq"] for chunk in chunks for event in chunk] == list(range(101, 1205))


async def test_a_notification_brings_what_is_new(run, alice):
    async with await open_socket(run, alice) as socket:
        await socket.say(HELLO)
        await socket.until("run")
        await sync_to_async(events)(run, 1, 2)
        for _ in range(50):
            live.notify(run.pk)
        assert [event["seq"] for event in (await socket.until("events"))["events"]] == [1, 2]
        await sync_to_async(Run.objects.filter(pk=run.pk).update)(state=State.FAILED, failure="cause and fix")
        live.notify(run.pk)
        assert (await socket.until("run"))["run"]["failure"] == "cause and fix"


async def test_a_lost_notification_costs_only_a_delay(run, alice, monkeypatch):
    monkeypatch.setattr(RunConsumer, "poll_seconds", 0.1)
    async with await open_socket(run, alice) as socket:
        await socket.say(HELLO)
        await socket.until("run")
        await sync_to_async(events)(run, 1, 1)
        assert (await socket.until("events"))["last"] == 1


async def test_live_frames_arrive_and_the_cursor_gets_the_gap(run, alice, valkey):
    whole = [Frame(KIND_TOKENS, 1, 1, rollout=number, payload=b"x").encode() for number in range(3)]
    first = valkey.xadd(live.stream(run.pk), {"f": whole[0]})
    async with await open_socket(run, alice) as socket:
        await socket.say(HELLO)
        message = await socket.until("frames")
        assert message == bytes([len(first)]) + first + whole[0]
        second = valkey.xadd(live.stream(run.pk), {"f": whole[1]})
        assert await socket.until("frames") == bytes([len(second)]) + second + whole[1]
    third = valkey.xadd(live.stream(run.pk), {"f": whole[2]})
    async with await open_socket(run, alice) as socket:
        await socket.say({**HELLO, "live": first.decode()})
        assert await socket.until("frames") == bytes([len(third)]) + third + whole[1] + whole[2]


@pytest.mark.parametrize(
    "message",
    [
        "nonsense",
        "[]",
        '{"type": "stop"}',
        '{"type":"hello","after":-1}',
        '{"type":"hello","after":true}',
        '{"type":"hello","live":"; DROP"}',
        '{"type":"watch","group":-1}',
        '{"type":"watch","group":true}',
        '{"type":"watch","group":2147483648}',
        '{"type":"watch","group":"1; DROP"}',
        "[" * 4000,
        "x" * 5000,
    ],
)
async def test_a_malformed_message_gets_a_sentence_and_the_socket_stays(run, alice, message):
    async with await open_socket(run, alice) as socket:
        await socket.say(message)
        assert (await socket.until("error"))["message"]
        await socket.say(HELLO)
        await socket.until("run")


async def test_viewers_see_all_runs(run, charlie):
    async with await open_socket(run, charlie) as socket:
        assert socket.accepted


async def test_strangers_are_refused(run):
    async with Socket(run.pk) as socket:
        assert not socket.accepted


async def test_an_unknown_run_is_refused(alice):
    async with Socket("nothere", await sync_to_async(cookie)(alice)) as socket:
        assert not socket.accepted


async def test_another_origin_is_refused(run, alice):
    async with Socket(run.pk, await sync_to_async(cookie)(alice), origin=b"http://evil.example") as socket:
        assert not socket.accepted


async def test_logging_out_closes_the_socket(run, alice):
    client = Client()
    async with Socket(run.pk, await sync_to_async(cookie)(alice, client)) as socket:
        await socket.say(HELLO)
        await socket.until("run")
        await sync_to_async(client.logout)()
        assert (await socket.until("close"))["code"] == 4401


async def test_a_deactivated_person_is_shut_out_within_the_recheck(run, alice, monkeypatch):
    monkeypatch.setattr(RunConsumer, "recheck_seconds", 0.1)
    async with await open_socket(run, alice) as socket:
        await socket.say(HELLO)
        await socket.until("run")
        alice.is_active = False
        await sync_to_async(alice.save)()
        assert (await socket.until("close"))["code"] == 4401


async def test_deleting_the_run_closes_the_socket(run, alice):
    async with await open_socket(run, alice) as socket:
        await socket.say(HELLO)
        await socket.until("run")
        run_id = run.pk
        await sync_to_async(run.delete)()
        live.notify(run_id)
        assert (await socket.until("close"))["code"] == 4404


async def test_a_second_hello_starts_over(run, alice):
    await sync_to_async(events)(run, 1, 2)
    async with await open_socket(run, alice) as socket:
        for _ in range(2):
            await socket.say(HELLO)
            assert (await socket.until("events"))["last"] == 2
        await asyncio.sleep(0.3)
        assert await socket.inner.receive_nothing()


def test_binary_messages_are_bounded():
    entries = [(f"{number}-0", b"x" * 100_000) for number in range(7)]
    bundles = list(_bundles(entries))
    assert [len(frames) for _, frames in bundles] == [200_000, 200_000, 200_000, 100_000]
    assert bundles[-1][0] == "6-0"


def test_a_fresh_page_starts_at_the_oldest_frame():
    assert parse('{"type":"hello"}') == Hello(0, "0-0")


# Choosing a group -----------------------------------------------------------------------------------------------------


async def watched(run: Run) -> list[int]:
    """Return the groups that the worker would pass on to the trainer."""
    return await sync_to_async(Run.objects.with_watched().values_list("watched", flat=True).get)(pk=run.pk)


async def eventually(look, wanted) -> None:
    for _ in range(200):
        if (found := await look()) == wanted:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"{found} instead of {wanted}")


async def choose(socket: Socket, group: int | None) -> dict:
    await socket.say({"type": "watch", "group": group})
    return await socket.until("watch")


async def test_a_choice_becomes_a_row_until_the_page_goes(run, alice):
    async with await open_socket(run, alice) as socket:
        assert await choose(socket, 7) == {"type": "watch", "group": 7, "refused": ""}
        assert await watched(run) == [7]
        await choose(socket, 3)
        assert await watched(run) == [3]
    await eventually(lambda: watched(run), [])


async def test_a_choice_can_be_taken_back(run, alice):
    async with await open_socket(run, alice) as socket:
        await choose(socket, 7)
        assert await choose(socket, None) == {"type": "watch", "group": None, "refused": ""}
        assert await watched(run) == []


async def test_walking_through_the_groups_asks_for_the_last_one_only(run, alice, monkeypatch):
    monkeypatch.setattr(RunConsumer, "pause_seconds", 2.0)  # longer than a busy machine takes to send them all
    async with await open_socket(run, alice) as socket:
        for group in range(20):
            await socket.say({"type": "watch", "group": group})
        assert (await socket.until("watch"))["group"] == 19
        assert await sync_to_async(Watch.objects.count)() == 1


async def test_two_viewers_both_get_theirs_and_a_hello_keeps_the_choice(run, alice, charlie):
    async with await open_socket(run, alice) as one, await open_socket(run, charlie) as other:
        await choose(one, 5)
        await choose(other, 2)
        assert await watched(run) == [5, 2]
        await one.say(HELLO)
        await one.until("run")
        assert await watched(run) == [5, 2]


async def test_beyond_the_limit_a_viewer_is_told_and_gets_the_place_of_whoever_leaves(run, alice, monkeypatch):
    monkeypatch.setattr(RunConsumer, "pause_seconds", 0.01)
    session = await sync_to_async(cookie)(alice)
    others = [Socket(run.pk, session) for _ in range(WATCHED_AT_ONCE)]
    for group, socket in enumerate(others):
        await socket.__aenter__()
        assert (await choose(socket, 10 + group))["refused"] == ""
    async with Socket(run.pk, session) as late:
        refused = (await choose(late, 99))["refused"]
        assert "10, 11, 12, 13" in refused
        assert 99 not in await watched(run)
        assert (await choose(late, 12))["refused"] == ""  # one that is shown anyway
        assert (await choose(late, 99))["refused"] == refused
        await others[0].__aexit__()
        assert await late.until("watch") == {"type": "watch", "group": 99, "refused": ""}
        assert await watched(run) == [11, 12, 13, 99]
    for socket in others[1:]:
        await socket.__aexit__()


async def test_a_page_that_vanished_is_forgotten(run, alice):
    async with await open_socket(run, alice) as socket:
        await choose(socket, 7)
        await sync_to_async(Watch.objects.update)(expires_at=run.created_at)
        assert await watched(run) == []


async def test_a_wish_is_renewed_while_the_page_is_open(run, alice, monkeypatch):
    monkeypatch.setattr(RunConsumer, "renew_seconds", 0.05)
    async with await open_socket(run, alice) as socket:
        await choose(socket, 7)
        await sync_to_async(Watch.objects.update)(expires_at=run.created_at)
        await eventually(lambda: watched(run), [7])


# Slow viewers ---------------------------------------------------------------------------------------------------------


async def test_a_viewer_who_does_not_read_holds_up_nobody_and_little_is_kept_for_her(run, alice, valkey, monkeypatch):
    """Her socket takes nothing more; what waits for her stays in the capped stream, and others go on."""
    block, stuck = asyncio.Event(), []
    send = RunConsumer.send

    async def sticky(self, *args, **more):
        if self.scope.get("slow") and more.get("bytes_data"):
            stuck.append(len(more["bytes_data"]))
            await block.wait()
        await send(self, *args, **more)

    monkeypatch.setattr(RunConsumer, "send", sticky)
    slow, quick = await open_socket(run, alice), await open_socket(run, alice)
    slow.inner.scope["slow"] = True
    piece = Frame(KIND_TOKENS, 1, 1, payload=b"x" * 8000).encode()
    async with slow, quick:
        await slow.say(HELLO)
        await quick.say(HELLO)
        newest = b""
        for _ in range(300):
            newest = valkey.xadd(live.stream(run.pk), {"f": piece})
        got = 0
        while got < 300 * len(piece):
            message = await quick.until("frames")
            got += len(message) - 1 - message[0]
        assert message[1 : 1 + message[0]] == newest
        assert len(stuck) == 1, "nothing is sent behind the message that she does not take"
        block.set()
        got = 0
        while got < 300 * len(piece):
            message = await slow.until("frames")
            got += len(message) - 1 - message[0]
        assert max(stuck) <= 256 * 1024 + 64
