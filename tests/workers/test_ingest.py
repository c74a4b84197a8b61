"""Events become rows once each, whatever the file holds."""

from __future__ import annotations

import json

import pytest

from webapp.runs.models import Checkpoint, Event, Run
from workers.claim import LeaseLost, claim
from workers.fold import SPARK_POINTS
from workers.ingest import CHUNK, MALFORMED, Ingest

pytestmark = pytest.mark.django_db

KNOB = {"name": "temperature", "value": 1.0, "low": 0.1, "high": 2.0}


class File:
    """Writes events.jsonl of a claimed run line by line."""

    def __init__(self, run: Run) -> None:
        self.run, self.seq = run, 0

    def line(self, kind: str, *, step: int = 1, attempt: int = 1, **fields) -> bytes:
        self.seq += 1
        head = {"seq": self.seq, "attempt": attempt, "step": step, "time": 1.7e9 + self.seq, "type": kind}
        return json.dumps({**head, **fields}).encode() + b"\n"

    def metrics(self, step: int, **values: float) -> bytes:
        return self.line(
            "metrics", step=step, values={name.replace("__", "/"): value for name, value in values.items()}
        )

    def started(self, *, attempt: int = 1, resume_step: int = 0) -> bytes:
        about = {"total_steps": 9, "pid": 1, "device": "cpu", "parameters": 1, "vocabulary": 2, "knobs": [KNOB]}
        return self.line("started", step=resume_step, attempt=attempt, resume_step=resume_step, **about)

    def write(self, *lines: bytes) -> None:
        with self.run.folder.events.open("ab") as file:
            file.write(b"".join(lines))


@pytest.fixture
def run(new_run):
    run = new_run()
    claim(run.pk, "w1", [])
    run.refresh_from_db()
    return run


@pytest.fixture
def file(run):
    return File(run)


def ingest(run: Run) -> Run:
    Ingest(Run.objects.get(pk=run.pk)).drain()
    run.refresh_from_db()
    return run


def test_started_makes_the_run_running_and_names_its_knobs(run, file):
    file.write(file.started())
    ingest(run)
    assert (run.state, run.total_steps) == ("running", 9)
    assert run.knobs["temperature"] == {"value": 1.0, "low": 0.1, "high": 2.0, "help": "", "unit": ""}


def test_metrics_move_step_summary_and_heartbeat(run, file):
    file.write(file.started(), file.metrics(1, reward__mean=0.5, entropy__mean=1.5), file.metrics(2, reward__mean=0.6))
    ingest(run)
    assert run.step == 2
    assert run.summary == {"reward/mean": 0.6, "entropy/mean": 1.5}
    assert run.spark_reward == [0.5, 0.6]
    assert run.heartbeat_at.timestamp() == 1.7e9 + 3
    assert Event.objects.get(run=run, seq=2).data == {"values": {"reward/mean": 0.5, "entropy/mean": 1.5}}


def test_metrics_tell_where_controllers_moved_a_knob(run, file):
    file.write(file.started(), file.metrics(1, knob__temperature=0.7, knob__unknown=3.0))
    ingest(run)
    assert run.knobs == {"temperature": {"value": 0.7, "low": 0.1, "high": 2.0, "help": "", "unit": ""}}


def test_a_torn_line_waits_for_its_end(run, file):
    first, second = file.started(), file.metrics(1, reward__mean=0.5)
    file.write(first, second[:20])
    ingest(run)
    assert (run.last_seq, run.events_offset) == (1, len(first))
    file.write(second[20:])
    ingest(run)
    assert run.last_seq == 2
    assert MALFORMED not in run.summary


@pytest.mark.parametrize(
    "bad",
    [
        b"nonsense\n",
        b"\xff\xfe\n",
        b"\n",
        b'{"seq": 2}\n',
        b'{"seq":2,"attempt":1,"step":1,"time":1,"type":"unheard"}\n',
        b'{"seq":2,"attempt":1,"step":1,"time":NaN,"type":"metrics","values":{}}\n',
        b'{"seq":2,"attempt":1,"step":1,"time":1e300,"type":"metrics","values":{}}\n',
        b'{"seq":2,"attempt":1,"step":9999999999,"time":1,"type":"metrics","values":{}}\n',
        b'{"seq":99999999999999999999,"attempt":1,"step":1,"time":1,"type":"metrics","values":{}}\n',
        b'{"seq":2,"attempt":1,"step":1,"time":1,"type":"checkpoint","path":"../../etc","bytes":1}\n',
        b'{"seq":2,"attempt":1,"step":1,"time":1,"type":"checkpoint","path":"/etc","bytes":1}\n',
        b'{"seq":2,"attempt":1,"step":1,"time":1,"type":"checkpoint","path":"a","bytes":99999999999999999999}\n',
        b'{"seq":2,"attempt":1,"step":1,"time":1,"type":"rollouts","path":"a","completions":1,"tokens":1,"bytes":1e400}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_malformed_line_is_counted_and_skipped(run, file, bad):
    file.write(file.started(), bad, file.metrics(1, reward__mean=0.5))
    ingest(run)
    assert list(run.events.values_list("seq", flat=True)) == [1, 2]
    assert run.summary == {"reward/mean": 0.5, MALFORMED: 1}


def test_a_line_without_end_is_skipped_piece_by_piece(run, file):
    file.write(file.started(), b"x" * (2 * CHUNK + 5) + b"\n", file.metrics(1, reward__mean=0.5))
    ingest(run)
    assert run.last_seq == 2
    assert run.summary[MALFORMED] >= 1


def test_what_a_column_cannot_hold_is_taken_out(run, file):
    file.write(
        file.line("alert", code="odd", message="a\x00b <script>"), file.metrics(1, reward__mean=float("inf"), a=1.0)
    )
    ingest(run)
    assert run.events.get(seq=1).data["message"] == "a�b <script>"
    assert run.summary == {"a": 1.0}


def test_reading_twice_stores_once(run, file):
    file.write(file.started(), *[file.metrics(step, reward__mean=step) for step in range(1, 6)])
    ingest(run)
    sparks = run.spark_reward
    Run.objects.filter(pk=run.pk).update(events_offset=0)
    ingest(run)
    assert run.events.count() == 6
    assert run.spark_reward == sparks


def test_a_file_that_became_shorter_is_read_from_its_start(run, file):
    file.write(file.started(), file.metrics(1, reward__mean=0.1))
    ingest(run)
    run.folder.events.write_bytes(b"")
    file.write(file.metrics(2, reward__mean=0.2))
    ingest(run)
    assert run.step == 2


def test_a_stale_token_writes_nothing(run, file):
    stale = Ingest(run)
    Run.objects.filter(pk=run.pk).update(lease_token=run.lease_token + 1)
    file.write(file.started())
    with pytest.raises(LeaseLost):
        stale.drain()
    assert not run.events.exists()


def test_sparklines_stay_short_and_keep_the_course(run, file):
    file.write(file.started(), *[file.metrics(step, reward__mean=step) for step in range(1, 1001)])
    ingest(run)
    assert 15 <= len(run.spark_reward) <= SPARK_POINTS
    assert run.spark_reward == sorted(run.spark_reward)
    assert run.spark_reward[0] <= 100
    assert run.spark_reward[-1] >= 950


def test_a_new_attempt_rewinds_step_and_sparklines(run, file):
    file.write(file.started(), *[file.metrics(step, reward__mean=step) for step in range(1, 31)])
    ingest(run)
    Run.objects.filter(pk=run.pk).update(attempt=2)
    file.write(file.started(attempt=2, resume_step=10))
    ingest(run)
    assert run.step == 10
    assert run.spark_reward == list(range(1, 11))
    assert run.events.filter(type="metrics").count() == 30


def test_a_checkpoint_has_the_metrics_of_its_step_and_a_later_evaluation(run, file):
    evaluation = file.line
    file.write(
        evaluation("evaluation", step=0, values={"avg@k": 0.3}, prompts=1, samples=1),
        file.metrics(5, reward__mean=0.5),
        file.line("checkpoint", step=5, path="checkpoints/step-00000005", bytes=10),
        evaluation("evaluation", step=5, values={"avg@k": 0.4}, prompts=1, samples=1),
        file.metrics(6, reward__mean=0.6),
    )
    ingest(run)
    checkpoint = Checkpoint.objects.get(run=run)
    assert checkpoint.metrics == {"reward/mean": 0.5, "evaluation/avg@k": 0.4}
    file.write(file.line("checkpoint_removed", step=6, path="checkpoints/step-00000005"))
    ingest(run)
    assert not run.checkpoints.exists()


def test_a_knob_event_updates_the_value_and_keeps_the_bounds(run, file):
    file.write(file.started(), file.line("knob", step=2, name="temperature", old=1.0, new=0.7))
    ingest(run)
    assert run.knobs["temperature"]["value"] == 0.7
    assert run.knobs["temperature"]["high"] == 2.0
