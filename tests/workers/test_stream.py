"""Live frames reach the stream whole, step by step, and a lost broker costs only frames."""

from __future__ import annotations

import time

import pytest

from trainer.events import FRAME, KIND_TOKENS, RANK_STRIDE, Frame, frames, progress
from webapp.runs import live
from workers.stream import ENTRY, Broker, Forwarder, Hurry, LiveFile, Progress


def frame(step: int, *, rollout: int = 0, size: int = 8) -> bytes:
    return Frame(KIND_TOKENS, 1, step, rollout=rollout, payload=b"x" * size).encode()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "live.bin"
    path.write_bytes(b"")
    return path


@pytest.fixture
def forwarder(path, valkey_server):
    return Forwarder("abc", path, Broker(valkey_server))


def stored(valkey) -> list[int]:
    """Return the steps of all frames in the stream."""
    data = b"".join(fields[b"f"] for _, fields in valkey.xrange(live.stream("abc")))
    return [found.step for found, _ in frames(data)]


def test_frames_are_appended_as_they_are_written(forwarder, path, valkey):
    with path.open("ab") as file:
        for rollout in range(3):
            file.write(frame(1, rollout=rollout))
            file.flush()
            forwarder.forward()
    forwarder.forward()
    assert stored(valkey) == [1, 1, 1]
    assert 0 < valkey.ttl(live.stream("abc")) <= live.STREAM_SECONDS


@pytest.mark.parametrize("cut", [1, FRAME.size - 1, FRAME.size, FRAME.size + 3])
def test_a_torn_frame_waits_for_its_end(forwarder, path, valkey, cut):
    whole, torn = frame(1), frame(1, rollout=1)
    path.write_bytes(whole + torn[:cut])
    forwarder.forward()
    assert stored(valkey) == [1]
    path.write_bytes(whole + torn)
    forwarder.forward()
    assert stored(valkey) == [1, 1]


def test_frames_of_further_processes_go_the_same_way(path, valkey, valkey_server):
    beside = [path.with_name(f"live-{rank}.bin") for rank in (1, 2)]
    forwarder = Forwarder("abc", path, Broker(valkey_server), beside)
    path.write_bytes(frame(1) + progress(1, 1, "sample", 1, 4).encode())
    beside[0].write_bytes(frame(1, rollout=RANK_STRIDE))  # the third process is late
    assert forwarder.forward() == Progress(1, "sample", 1, 4)
    assert stored(valkey) == [1, 1, 1]
    path.write_bytes(frame(2, size=9))
    beside[0].write_bytes(frame(2, rollout=RANK_STRIDE) * 2)
    beside[1].write_bytes(frame(2, rollout=2 * RANK_STRIDE))
    forwarder.forward()
    assert stored(valkey)[3:] == [2] * 4
    beside[0].write_bytes(frame(3, rollout=RANK_STRIDE) * 3)  # a process may begin the next step before the first one
    assert forwarder.forward() is None
    assert stored(valkey)[7:] == [3] * 3


def test_a_new_step_is_read_from_its_start_even_if_it_is_longer(forwarder, path, valkey):
    path.write_bytes(frame(1))
    forwarder.forward()
    path.write_bytes(frame(2) + frame(2, rollout=1))
    forwarder.forward()
    assert stored(valkey) == [1, 2, 2]


def test_the_stream_keeps_the_last_two_steps(forwarder, path, valkey):
    for step in range(1, 6):
        path.write_bytes(frame(step))
        forwarder.forward()
    assert stored(valkey) == [4, 5]


def test_foreign_bytes_are_skipped_until_the_next_step(forwarder, path, valkey):
    path.write_bytes(frame(1) + b"\xee" * 100)
    forwarder.forward()
    path.write_bytes(frame(2))
    forwarder.forward()
    assert stored(valkey) == [1, 2]


def test_large_steps_are_divided_at_frames(forwarder, path, valkey):
    path.write_bytes(b"".join(frame(1, rollout=number, size=5000) for number in range(20)))
    forwarder.forward()
    entries = valkey.xrange(live.stream("abc"))
    assert len(entries) > 1
    assert all(len(fields[b"f"]) <= ENTRY for _, fields in entries)
    assert stored(valkey) == [1] * 20


def test_the_newest_progress_is_told(forwarder, path):
    path.write_bytes(progress(1, 1, "rollout", 3, 8).encode() + progress(1, 1, "rollout", 4, 8).encode() + frame(1))
    assert forwarder.forward() == Progress(1, "rollout", 4, 8)


@pytest.mark.parametrize("payload", [b"nonsense", b"[]", b'{"phase": "a"}', b'{"phase":"a","done":-1,"total":1}'])
def test_progress_that_makes_no_sense_is_ignored(forwarder, path, payload):
    path.write_bytes(Frame(3, 1, 1, payload=payload).encode())
    assert forwarder.forward() is None


def test_without_a_broker_progress_goes_on(path):
    forwarder = Forwarder("abc", path, Broker("redis://127.0.0.1:1/0"))
    for done in range(3):
        path.write_bytes(progress(1, done, "rollout", done, 8).encode())
        assert forwarder.forward() == Progress(1, "rollout", done, 8)


def test_a_missing_file_is_nothing_yet(tmp_path):
    assert LiveFile(tmp_path / "live.bin").read() == ([], [], False)


def test_frames_do_not_wait_for_the_supervisor(path, valkey, valkey_server):
    """Each frame is on its way by itself, in order and once, while somebody else moves frames, too."""
    forwarder = Forwarder("abc", path, Broker(valkey_server))
    with Hurry(lambda: [forwarder]):
        for number in range(40):
            with path.open("ab") as file:
                file.write(frame(1, rollout=number))
            if number % 7 == 0:
                forwarder.forward()
            time.sleep(0.005)
        deadline = time.monotonic() + 10
        while len(stored(valkey)) < 40 and time.monotonic() < deadline:
            time.sleep(0.01)
    data = b"".join(fields[b"f"] for _, fields in valkey.xrange(live.stream("abc")))
    assert [found.rollout for found, _ in frames(data)] == list(range(40))


def test_a_broken_run_leaves_the_others_their_frames(path, valkey, valkey_server, monkeypatch):
    monkeypatch.setattr("workers.stream.AWAY", 0.01)

    class Broken(Forwarder):
        def _move(self) -> bool:
            raise PermissionError("live.bin")

    broken, sound = Broken("bad", path, Broker(valkey_server)), Forwarder("abc", path, Broker(valkey_server))
    path.write_bytes(frame(1))
    with Hurry(lambda: [broken, sound]):
        deadline = time.monotonic() + 10
        while not stored(valkey) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert stored(valkey) == [1]


def test_the_stream_is_bounded_whoever_reads_it_or_not(path, valkey, valkey_server, monkeypatch):
    """A trainer that writes far more than the stream holds costs the broker no more than its cap."""
    monkeypatch.setattr(live, "STREAM_LENGTH", 200)
    forwarder = Forwarder("abc", path, Broker(valkey_server))
    for number in range(60):
        with path.open("ab") as file:
            file.write(b"".join(frame(1, rollout=number, size=3000) for _ in range(60)))
        forwarder.forward()
    assert valkey.xlen(live.stream("abc")) <= 200 + 100  # the cap is approximate: whole nodes of 100 entries go
    assert forwarder.file.offset == path.stat().st_size
