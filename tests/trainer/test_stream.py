"""Event and live streams: what a killed or crowded machine may leave, and what the next attempt makes of it."""

from __future__ import annotations

import errno
import json
import random

import pytest

from tests.trainer.runs import events
from trainer.errors import ResourceError
from trainer.events import RunFolder, frames
from trainer.stream import Stream, cut_torn_line, last_event


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def write(folder: RunFolder, attempt: int, count: int) -> None:
    stream = Stream(folder, attempt)
    for step in range(1, count + 1):
        stream.emit("metrics", step, values={"reward/mean": random.random()})
    stream.close()


def test_seq_counts_on_over_attempts(folder):
    write(folder, 1, 3)
    write(folder, 2, 2)
    assert [(event["seq"], event["attempt"]) for event in events(folder)] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]


def test_a_line_torn_anywhere_is_cut_off_and_its_number_used_again(folder):
    write(folder, 1, 3)
    whole = folder.events.read_bytes()
    last = whole[: whole[:-1].rfind(b"\n") + 1]
    folder.events.write_bytes(whole[: random.randrange(len(last), len(whole))])
    write(folder, 2, 1)
    assert [event["seq"] for event in events(folder)] == [1, 2, 3]
    assert events(folder)[-1]["attempt"] == 2


def test_a_torn_line_longer_than_the_reading_window(folder):
    write(folder, 1, 1)
    with folder.events.open("ab") as file:
        file.write(b"{" + b"x" * 200_000)
    cut_torn_line(folder.events)
    assert [event["seq"] for event in events(folder)] == [1]


def test_the_last_event_is_found_behind_rubbish_and_long_lines(folder):
    stream = Stream(folder, 1)
    stream.emit("warning", 0, code="long", message="y" * 200_000)
    stream.close()
    with folder.events.open("ab") as file:
        file.write(b"\0" * 100 + b"\n\n[]\n")
    assert last_event(folder.events)["seq"] == 1


def test_numbers_that_are_not_finite_are_left_out(folder):
    stream = Stream(folder, 1)
    stream.emit("metrics", 1, values={"a": float("nan"), "b": float("inf"), "c": 1})
    stream.close()
    assert events(folder)[0]["values"] == {"c": 1.0}


def test_an_event_of_no_known_shape_is_refused(folder):
    stream = Stream(folder, 1)
    with pytest.raises(ValueError, match="metrics"):
        stream.emit("metrics", 1, valus={})
    stream.close()
    assert folder.events.read_bytes() == b""


def test_each_step_empties_the_live_file(folder):
    stream = Stream(folder, 1)
    stream.progress(1, "sample", 3, 8)
    stream.begin_step()
    stream.progress(2, "sample", 4, 8)
    found = [frame for frame, _ in frames(folder.live.read_bytes())]
    assert [(frame.step, json.loads(frame.payload)["done"]) for frame in found] == [(2, 4)]
    stream.close()


def test_a_full_disk_says_so(folder, monkeypatch):
    stream = Stream(folder, 1)

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stream, "_events", Full())
    with pytest.raises(ResourceError, match="full"):
        stream.emit("metrics", 1, values={})
    assert stream.seq == 0
