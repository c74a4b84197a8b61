"""What travels between trainer and server: everything comes out as it went in, and nonsense is refused."""

from __future__ import annotations

import io
import random
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.rollout import Chunk, Generation, GenRequest, SamplerSpec, TapSpec
from trainer.rollout.modifiers import AdaptiveTemperature, ForkTemperature, UniformChoice, VocabularyDropout
from trainer.rollout.server import frame as frames
from trainer.rollout.server.frame import HEAD, MAGIC, PROTOCOL, Frame, FrameError, OtherProtocol, decode
from trainer.rollout.server.messages import (
    pack_chunks,
    pack_generations,
    pack_requests,
    unpack_chunks,
    unpack_generations,
    unpack_requests,
)  # fmt: skip

VOCABULARY = 300

number = st.floats(width=32, allow_nan=False)
finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)
token = st.integers(0, VOCABULARY - 1)
tokens, numbers = st.lists(token, max_size=5), st.lists(number, max_size=5)
whole, place = st.integers(-(2**40), 2**40), st.none() | st.integers(0, 2**40)
modifier = st.one_of(
    st.builds(AdaptiveTemperature, finite, finite, finite, finite, finite),
    st.builds(ForkTemperature, finite, finite, finite),
    st.builds(UniformChoice, k=st.integers(1, 9), floor=finite, warm=st.integers(0, 9)),
    st.builds(VocabularyDropout, keep=finite, seed=st.integers(0, 2**63), spared=st.tuples(token, token)),
)
sampler = st.builds(
    SamplerSpec, finite, finite, st.integers(0, 99), finite, finite, st.lists(modifier, max_size=2).map(tuple)
)
tap = st.builds(TapSpec, st.sampled_from(["none", "bounds", "exact"]), st.integers(0, 64), st.booleans())
REQUEST = {
    "id": whole, "group": whole, "sample": whole, "prompt_ids": tokens.map(tuple), "seed": st.integers(0, 2**64 - 1),
    "max_new": st.integers(0, 2**40), "sampler": sampler, "tap": tap, "prefix_ids": tokens.map(tuple), "parent": place,
    "fork_at": place, "given_logprob": numbers.map(tuple), "auxiliary": st.booleans(), "watch": st.booleans(),
}  # fmt: skip
GENERATION = {
    "id": whole, "ids": tokens, "logprob": numbers, "entropy": numbers, "low": numbers, "high": numbers,
    "finish_reason": st.sampled_from(["stop", "length", "pruned"]), "behaviour": numbers, "version": whole,
    "estimator": st.sampled_from(["exact", "bounds", "none"]), "top_ids": st.lists(tokens, max_size=3),
    "moments": st.just({}) | st.fixed_dictionaries({"sum_p2": numbers, "entropy_gain": numbers}),
    "top_logprob": st.lists(numbers, max_size=3),
}  # fmt: skip
CHUNK = {"id": whole, "first": whole, "ids": tokens, **dict.fromkeys(("logprob", "entropy", "low", "high"), numbers)}
request, generation, chunk = (
    st.builds(cls, **parts) for cls, parts in ((GenRequest, REQUEST), (Generation, GENERATION), (Chunk, CHUNK))
)


def sent(header: dict[str, Any], columns: dict[str, np.ndarray]) -> Frame:
    """Return a message after its way over the wire."""
    return read(Frame({"type": "test", **header}, columns).encode())


def read(data: bytes, **how: bool) -> Frame:
    stream = io.BytesIO(data)

    def exactly(size: int) -> bytes:
        found = stream.read(size)
        if len(found) < size:
            raise EOFError
        return found

    return decode(exactly, **how)


@settings(max_examples=30, deadline=None)
@given(st.lists(request, max_size=6), st.lists(generation, max_size=6), st.lists(chunk, max_size=6))
def test_everything_comes_out_as_it_went_in(requests, generations, chunks):
    assert unpack_requests(sent(*pack_requests(requests)), VOCABULARY) == requests
    assert unpack_generations(sent(*pack_generations(generations))) == generations
    assert unpack_chunks(sent(*pack_chunks(chunks))) == chunks


@pytest.mark.parametrize(("cls", "parts"), [(GenRequest, REQUEST), (Generation, GENERATION), (Chunk, CHUNK)])
def test_the_round_trip_leaves_no_field_out(cls, parts):
    """A field that somebody adds must travel, too: left at its default the test above would not see it."""
    assert set(parts) == {field.name for field in fields(cls)}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_garbage_is_refused(data, headed):
    if headed:
        data = HEAD.pack(MAGIC, PROTOCOL, 0, len(data), 0) + data
    with pytest.raises((FrameError, EOFError)):
        read(data)


@settings(max_examples=60, deadline=None)
@given(st.lists(request, min_size=1, max_size=3), st.data())
def test_a_message_with_wrong_bytes_is_refused_or_means_something(requests, data):
    """Whatever is flipped, nothing but FrameError comes of it, and no token that the model does not know."""
    whole = bytearray(Frame({"type": "run", **pack_requests(requests)[0]}, pack_requests(requests)[1]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(HEAD.size, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = unpack_requests(read(bytes(whole)), VOCABULARY)
    except (FrameError, EOFError):
        return
    assert all(max((*one.prompt_ids, *one.prefix_ids), default=0) < VOCABULARY for one in found)


def test_a_lie_about_a_columns_place_is_refused():
    for lie in (["u4", 0, 2**40], ["u4", -8, 1], ["u4", 0], "u4", ["O", 0, 1], ["u4", 0.5, 1], ["u4", 4, 2**70]):
        with pytest.raises(FrameError):
            frames._columns({"prompt": lie}, bytes(8))


def test_sizes_are_checked_before_anything_is_read():
    for header, body in ((frames.MAX_HEADER + 1, 0), (10, frames.MAX_BODY + 1)):
        with pytest.raises(FrameError, match="longer than allowed"):
            read(HEAD.pack(MAGIC, PROTOCOL, 0, header, body))


def test_a_stranger_may_send_little():
    data = Frame({"type": "hello", "padding": "x" * frames.MAX_GREETING}).encode()
    assert read(data).type == "hello"
    with pytest.raises(FrameError, match="longer than allowed"):
        read(data, trusted=False)
    with pytest.raises(FrameError, match="longer than allowed"):
        read(Frame({"type": "hello"}, {"ids": np.zeros(1, "<u4")}).encode(), trusted=False)


def test_another_protocol_is_named():
    with pytest.raises(OtherProtocol, match=r"version 9 .* this side version 1; install the same version"):
        read(HEAD.pack(MAGIC, 9, 0, 2, 0) + b"{}")


def test_what_is_too_long_is_not_sent(monkeypatch):
    monkeypatch.setattr(frames, "MAX_BODY", 64)
    with pytest.raises(FrameError, match="too long"):
        Frame({"type": "run"}, {"ids": np.zeros(random.randrange(17, 40), "<u4")}).encode()
