"""Requests, generations and chunks as columns, and back; what arrives is checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
from pydantic import TypeAdapter, ValidationError

from trainer.rollout.base import Chunk, FinishReason, Generation, GenRequest, SamplerSpec, TapSpec
from trainer.rollout.server.frame import Frame, FrameError

MAX_REQUESTS = 1 << 20
NONE = -1  # of parent and fork_at
AUXILIARY, WATCH = 1, 2
REASONS: tuple[str, ...] = get_args(FinishReason)
ESTIMATORS = ("exact", "bounds", "none")
LISTS = {"ids": "u4", **dict.fromkeys(("logprob", "entropy", "low", "high", "behaviour"), "f4")}  # of a generation
TOPS = {"top_ids": "u4", "top_logprob": "f4"}  # lists for each token
CHUNK = {"ids": "u4", **dict.fromkeys(("logprob", "entropy", "low", "high"), "f4")}
SAMPLERS: TypeAdapter[list[SamplerSpec]] = TypeAdapter(list[SamplerSpec])
TAPS: TypeAdapter[list[TapSpec]] = TypeAdapter(list[TapSpec])

Columns = dict[str, np.ndarray]


def pack_requests(requests: Sequence[GenRequest]) -> tuple[dict[str, Any], Columns]:
    """Return header fields and columns; equal prompts, samplers and taps travel once."""
    prompts, samplers, taps = (
        list(dict.fromkeys(getattr(one, name) for one in requests)) for name in ("prompt_ids", "sampler", "tap")
    )
    places = [{value: place for place, value in enumerate(values)} for values in (prompts, samplers, taps)]
    columns = {
        "prompt": _array("u4", (places[0][one.prompt_ids] for one in requests)),
        "sampler": _array("u4", (places[1][one.sampler] for one in requests)),
        "tap": _array("u4", (places[2][one.tap] for one in requests)),
        "seed": _array("u8", (one.seed for one in requests)),
        "flags": _array("u1", (AUXILIARY * one.auxiliary + WATCH * one.watch for one in requests)),
        "parent": _array("i8", (NONE if one.parent is None else one.parent for one in requests)),
        "fork_at": _array("i8", (NONE if one.fork_at is None else one.fork_at for one in requests)),
        **{
            name: _array("i8", (getattr(one, name) for one in requests))
            for name in ("id", "group", "sample", "max_new")
        },
        **_ragged("prompts", "u4", prompts),
        **_ragged("prefix", "u4", [one.prefix_ids for one in requests]),
        **_ragged("given_logprob", "f4", [one.given_logprob for one in requests]),
    }
    specs = {"samplers": SAMPLERS.dump_python(samplers, mode="json"), "taps": TAPS.dump_python(taps, mode="json")}
    return {"requests": len(requests), **specs}, columns


def unpack_requests(frame: Frame, vocabulary: int) -> list[GenRequest]:
    """Return the requests of a message; raises FrameError where they make no sense, such as a token nobody knows."""
    count = _count(frame, "requests")
    try:
        samplers = SAMPLERS.validate_python(frame.header.get("samplers"))
        taps = TAPS.validate_python(frame.header.get("taps"))
    except ValidationError as error:
        raise FrameError(f"a sampler or tap cannot be read: {error.errors()[0]['msg']}") from error
    prompts, prefixes = _lists(frame, "prompts", None, vocabulary), _lists(frame, "prefix", count, vocabulary)
    given = _lists(frame, "given_logprob", count)
    of = {name: _places(frame, name, count, len(values)) for name, values in
          (("prompt", prompts), ("sampler", samplers), ("tap", taps))}  # fmt: skip
    numbers = {name: _column(frame, name, count).tolist() for name in
               ("id", "group", "sample", "seed", "max_new", "parent", "fork_at", "flags")}  # fmt: skip
    tuples = [tuple(prompt) for prompt in prompts]
    return [
        GenRequest(
            id=numbers["id"][i], group=numbers["group"][i], sample=numbers["sample"][i],
            prompt_ids=tuples[of["prompt"][i]], prefix_ids=tuple(prefixes[i]), given_logprob=tuple(given[i]),
            seed=numbers["seed"][i], max_new=numbers["max_new"][i], sampler=samplers[of["sampler"][i]],
            tap=taps[of["tap"][i]], parent=_optional(numbers["parent"][i]), fork_at=_optional(numbers["fork_at"][i]),
            auxiliary=bool(numbers["flags"][i] & AUXILIARY), watch=bool(numbers["flags"][i] & WATCH),
        )
        for i in range(count)
    ]  # fmt: skip


def pack_generations(generations: Sequence[Generation]) -> tuple[dict[str, Any], Columns]:
    """Return header fields and columns; log-probs and entropies travel as float32."""
    names = list(dict.fromkeys(name for one in generations for name in one.moments))
    columns: Columns = {
        "id": _array("i8", (one.id for one in generations)),
        "version": _array("i8", (one.version for one in generations)),
        "reason": _array("u1", (REASONS.index(one.finish_reason) for one in generations)),
        "estimator": _array("u1", (ESTIMATORS.index(one.estimator) for one in generations)),
        "measured": _array("u1", (bool(one.moments) for one in generations)),
    }
    for name, kind in LISTS.items():
        columns |= _ragged(name, kind, [getattr(one, name) for one in generations])
    for name, kind in TOPS.items():
        columns |= _ragged(name, kind, [row for one in generations for row in getattr(one, name)])
        columns[f"{name}.rows"] = _array("u4", (len(getattr(one, name)) for one in generations))
    for place, name in enumerate(names):
        columns |= _ragged(f"moment{place}", "f4", [one.moments.get(name, ()) for one in generations])
    return {"generations": len(generations), "moments": names}, columns


def unpack_generations(frame: Frame) -> list[Generation]:
    """Return the generations of a message; raises FrameError where they cannot be read."""
    count, names = _count(frame, "generations"), frame.header.get("moments")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FrameError("the moments have no names")
    lists = {name: _lists(frame, name, count) for name in LISTS}
    moments = {name: _lists(frame, f"moment{place}", count) for place, name in enumerate(names)}
    tops = {name: _nested(frame, name, count) for name in TOPS}
    reasons, estimators = (
        _places(frame, "reason", count, len(REASONS)),
        _places(frame, "estimator", count, len(ESTIMATORS)),
    )
    numbers = {name: _column(frame, name, count).tolist() for name in ("id", "version", "measured")}
    return [
        Generation(
            numbers["id"][i], **{name: values[i] for name, values in (lists | tops).items()},
            finish_reason=REASONS[reasons[i]],  # type: ignore[arg-type]
            estimator=ESTIMATORS[estimators[i]],  # type: ignore[arg-type]
            moments={name: values[i] for name, values in moments.items()} if numbers["measured"][i] else {},
            version=numbers["version"][i],
        )
        for i in range(count)
    ]  # fmt: skip


def pack_chunks(chunks: Sequence[Chunk]) -> tuple[dict[str, Any], Columns]:
    """Return header fields and columns."""
    columns = {name: _array("i8", (getattr(one, name) for one in chunks)) for name in ("id", "first")}
    for name, kind in CHUNK.items():
        columns |= _ragged(name, kind, [getattr(one, name) for one in chunks])
    return {"chunks": len(chunks)}, columns


def unpack_chunks(frame: Frame) -> list[Chunk]:
    """Return the chunks of a message; raises FrameError where they cannot be read."""
    count = _count(frame, "chunks")
    numbers = {name: _column(frame, name, count).tolist() for name in ("id", "first")}
    lists = {name: _lists(frame, name, count) for name in CHUNK}
    return [
        Chunk(numbers["id"][i], numbers["first"][i], **{name: values[i] for name, values in lists.items()})
        for i in range(count)
    ]


def _array(kind: str, values: Iterable[Any]) -> np.ndarray:
    return np.array(list(values), dtype=f"<{kind}")


def _ragged(name: str, kind: str, lists: Sequence[Sequence[Any]]) -> Columns:
    """Return the columns of lists of different lengths: all values, and how many belong to each."""
    flat = [value for values in lists for value in values]
    return {f"{name}.of": _array("u4", map(len, lists)), name: _array(kind, flat)}


def _lists(frame: Frame, name: str, count: int | None, below: int | None = None) -> list[list[Any]]:
    lengths, values = _column(frame, f"{name}.of", count), _column(frame, name, None)
    if int(lengths.sum(dtype=np.uint64)) != len(values):
        raise FrameError(f"column {name} is not as long as its parts")
    if below is not None and len(values) and int(values.max()) >= below:
        raise FrameError(f"column {name} holds a token that the model does not know")
    ends = lengths.astype(np.int64).cumsum().tolist()
    flat = values.tolist()
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _nested(frame: Frame, name: str, count: int) -> list[list[list[Any]]]:
    """Return the lists of lists of each of `count`."""
    rows, lists = _column(frame, f"{name}.rows", count), _lists(frame, name, None)
    if int(rows.sum(dtype=np.uint64)) != len(lists):
        raise FrameError(f"column {name} is not as long as its parts")
    ends = rows.astype(np.int64).cumsum().tolist()
    return [lists[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _places(frame: Frame, name: str, count: int, size: int) -> list[int]:
    found = _column(frame, name, count)
    if len(found) and int(found.max()) >= size:
        raise FrameError(f"column {name} points at nothing")
    return found.tolist()


def _column(frame: Frame, name: str, count: int | None) -> np.ndarray:
    found = frame.columns.get(name)
    if found is None or (count is not None and len(found) != count):
        raise FrameError(f"column {name} is missing or not of the length of the others")
    return found


def _count(frame: Frame, name: str) -> int:
    count = frame.header.get(name)
    if not isinstance(count, int) or not 0 <= count <= MAX_REQUESTS:
        raise FrameError(f"the number of {name} is missing or out of range")
    return count


def _optional(number: int) -> int | None:
    return None if number == NONE else number
