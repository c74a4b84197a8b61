"""Series keep peaks and fates; bundles carry every token to the browser."""

from __future__ import annotations

import json
import random
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fabricate import (
    CONTEXT,
    HOSTILE,
    char_tokens,
    completion_row,
    fabricate_run,
    forked_row,
    write_rollouts,
)
from webapp.runs import data
from webapp.runs.data import Segment, decimate
from webapp.runs.panels import panels

pytestmark = pytest.mark.django_db


@pytest.fixture
def run(alice, db):
    return fabricate_run(alice)


def unpack(body: bytes):
    """Read a bundle as docs/architecture.md describes it."""
    (size,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + size])
    base = -(-(4 + size) // 8) * 8
    formats = {"u32": "I", "f32": "f", "f16": "e", "u8": "B"}
    columns = {}
    for name, spec in header["columns"].items():
        assert spec["offset"] % 8 == 0
        columns[name] = struct.unpack_from(f"<{spec['length']}{formats[spec['dtype']]}", body, base + spec["offset"])
    return header, columns


def test_later_attempts_supersede_points_behind_their_resume_step(run):
    found = data.series(run, ["reward/mean"], points=1000)["series"]["reward/mean"]
    fates = [(attempt, superseded, steps[0], steps[-1]) for attempt, superseded, steps, _, _ in found]
    assert fates == [(1, False, 1, 20), (1, True, 21, 30), (2, False, 21, 45)]


def test_evaluations_are_series_too(run):
    found = data.series(run, ["evaluation/avg@16"], points=1000)["series"]["evaluation/avg@16"]
    assert [steps for _, _, steps, _, _ in found] == [[20], [40]]


def test_unknown_metric_is_an_empty_series(run):
    assert data.series(run, ["nothing/here"], points=100)["series"] == {"nothing/here": []}


def test_a_range_of_steps_is_asked_for_alone(run):
    found = data.series(run, ["reward/mean"], points=1000, first=40, last=42)["series"]["reward/mean"]
    assert [steps for _, _, steps, _, _ in found] == [[40, 41, 42]]


def test_decimation_keeps_every_spike():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    values = [rng.random() for _ in range(50_000)]
    spikes = rng.sample(range(50_000), 20)
    for at in spikes:
        values[at] = 100.0 + at
    thinned = decimate([Segment(1, False, list(range(50_000)), values, [float(at) for at in range(50_000)])], 800)[0]
    assert len(thinned.steps) <= 802
    assert thinned.steps == sorted(thinned.steps)
    assert (thinned.steps[0], thinned.steps[-1]) == (0, 49_999)
    # The highest point of each bucket survives, so the highest of all does, and nothing is invented.
    assert max(thinned.values) == max(values)
    assert all(values[step] == value for step, value in zip(thinned.steps, thinned.values, strict=True))


def test_few_points_are_left_alone(run):
    found = data.series(run, ["reward/mean"], points=1000)
    assert (found["decimated"], found["shown"], found["total"]) == (False, 55, 55)


def test_thinned_series_say_so(run):
    found = data.series(run, ["reward/mean"], points=20)
    assert found["decimated"]
    assert found["shown"] < found["total"] == 55


def test_bundle_holds_every_token_of_every_completion(run):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    rows = [
        completion_row(rng, 0, at, "p", char_tokens("".join(rng.choices("0123456789é数👍", k=rng.randint(0, 40)))), 1.0)
        for at in range(150)
    ]
    path = run.folder.rollout_file(7)
    write_rollouts(path, rows)
    header, columns = unpack(data.rollout_bundle(path, 7))
    assert [rollout["tokens"] for rollout in header["rollouts"]] == [len(row["token_ids"]) for row in rows]
    for rollout, row in zip(header["rollouts"], rows, strict=True):
        part = slice(rollout["first"], rollout["first"] + rollout["tokens"])
        assert list(columns["token_ids"][part]) == row["token_ids"]
        assert list(columns["byte_offsets"][part]) == row["byte_offsets"]
        assert columns["entropy"][part] == pytest.approx(row["entropy"], rel=1e-3, abs=1e-6)
        assert columns["logprob"][part] == pytest.approx(row["logprob"], rel=1e-6)
        assert rollout["completion"] == row["completion"]


def test_bundle_keeps_hostile_text_as_it_is(run):
    path = run.folder.rollout_file(7)
    write_rollouts(path, [completion_row(random.Random(0), 0, 0, HOSTILE, char_tokens(HOSTILE), 0.0)])
    header, _ = unpack(data.rollout_bundle(path, 7))
    assert header["rollouts"][0]["completion"] == HOSTILE


def test_invalid_reward_and_nan_arrive_as_null(run):
    rng, path = random.Random(0), run.folder.rollout_file(7)
    write_rollouts(
        path,
        [
            {**completion_row(rng, 0, 0, "p", ["a"], 0.0), "reward": None},
            completion_row(rng, 0, 1, "p", ["a"], 0.0, advantage=float("nan")),
        ],
    )
    header, _ = unpack(data.rollout_bundle(path, 7))
    assert header["rollouts"][0]["reward"] is None
    assert header["rollouts"][1]["advantage"] is None


def test_forks_and_who_said_what_arrive(run):
    rng, path = random.Random(0), run.folder.rollout_file(7)
    rows = [completion_row(rng, 0, 0, "p", char_tokens("12345"), 0.0)]
    rows.append(
        forked_row(rng, rows, 0, 3, char_tokens("67"), 1.0) | {"version": 6, "template": "terse", "learns": False}
    )
    write_rollouts(path, rows)
    header, columns = unpack(data.rollout_bundle(path, 7))
    root, fork = header["rollouts"]
    assert (root["branch_parent"], root["branch_token"], root["template"], root["learns"]) == (None, None, None, True)
    assert (fork["branch_parent"], fork["branch_token"], fork["completion"]) == (root["index"], 3, "12367")
    assert (fork["version"], fork["template"], fork["learns"]) == (6, "terse", False)
    assert [part["kind"] for part in fork["segments"]] == ["prefix", "model"]
    assert [bool(flag & CONTEXT) for flag in columns["flags"][5:]] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("estimator", ["bounds", "exact"])
def test_bounds_are_sent_where_entropies_are_no_more(run, estimator):
    path = run.folder.rollout_file(7)
    write_rollouts(path, [completion_row(random.Random(0), 0, 0, "p", char_tokens("12"), 1.0)])
    table = pq.read_table(path)
    for name, values in {"entropy_low": [0.25, 0.5], "entropy_high": [0.75, 1.0]}.items():
        table = table.append_column(name, pa.array([values], pa.list_(pa.float32())))
    said = {b"isentrope": json.dumps({"entropy_estimator": estimator}).encode()}
    pq.write_table(table.replace_schema_metadata(said), path)
    header, columns = unpack(data.rollout_bundle(path, 7))
    assert header["entropy_estimator"] == estimator
    if estimator == "bounds":
        assert list(columns["entropy_low"]) == [0.25, 0.5]
        assert list(columns["entropy_high"]) == [0.75, 1.0]
    else:
        assert "entropy_low" not in columns


def test_a_file_of_an_older_version_still_opens(run):
    path = run.folder.rollout_file(7)
    write_rollouts(path, [completion_row(random.Random(0), 0, 0, "p", char_tokens("12"), 1.0)])
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["segments", "learns", "version", "template"]), path)
    header, columns = unpack(data.rollout_bundle(path, 7))
    assert header["entropy_estimator"] == "exact"
    assert "segments" not in header["rollouts"][0]
    assert len(columns["flags"]) == 2


def test_the_entropy_chart_says_when_it_shows_bounds(run):
    def unit(plan):
        return next(panel["unit"] for panel in panels(run, plan) if panel["id"] == "entropy")

    assert unit(None) == unit({"entropy": {"choice": "exact"}}) == "nats"
    assert unit({"entropy": {"choice": "bounds", "why": "it is so"}}) == "nats, between top-k bounds"


def test_too_many_tokens_leave_whole_completions_out(run, monkeypatch):
    monkeypatch.setattr(data, "MAX_BUNDLE_TOKENS", 25)
    path = run.folder.rollout_file(7)
    write_rollouts(
        path, [completion_row(random.Random(0), 0, at, "p", char_tokens("0123456789"), 0.0) for at in range(4)]
    )
    header, columns = unpack(data.rollout_bundle(path, 7))
    assert (len(header["rollouts"]), header["left_out"], len(columns["entropy"])) == (2, 2, 20)


def test_index_lists_the_newest_recording_of_each_step(run):
    index = data.rollout_index(run)
    assert [entry["step"] for entry in index] == list(range(1, 46))
    assert {entry["attempt"] for entry in index if entry["step"] > 20} == {2}
    assert not any(entry["superseded"] for entry in index)
