"""Children of the launcher: restarted when they end, ended when asked, their troubles repeated."""

import os
import signal
import sys
import time

import psutil
import pytest

from webapp.local.child import Child, end_leftover


@pytest.fixture
def make(tmp_path):
    children = []

    def child(code: str) -> Child:
        made = Child("toy", [sys.executable, "-c", code], env=dict(os.environ), log=tmp_path / "toy.log", cwd=tmp_path)
        children.append(made)
        return made

    yield child
    for made in children:
        made.kill()


def _until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_it_is_started_again_after_a_growing_pause(make):
    child = make("raise SystemExit(3)")
    child.start()
    pauses = []

    def ended_twice():
        if (news := child.tend()) and "code 3" in news:
            pauses.append(news)
        return len(pauses) == 2

    _until(ended_twice)
    assert "in 1 s" in pauses[0]
    assert "in 2 s" in pauses[1]


def test_a_child_that_lives_is_left_alone(make):
    child = make("import time; time.sleep(60)")
    child.start()
    assert child.tend() == ""


def test_it_may_end_in_its_own_way(make):
    child = make(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *a: (print('goodbye', flush=True), sys.exit(0)))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    child.start()
    _until(lambda: "ready" in child.log.read_text())
    assert child.stop(10)
    assert "goodbye" in child.log.read_text()


def test_one_that_will_not_end_is_killed(make):
    child = make(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    child.start()
    _until(lambda: "ready" in child.log.read_text())
    assert not child.stop(0.2)
    assert child.process.returncode == -signal.SIGKILL


def test_only_troubles_are_repeated_and_once(make):
    child = make(
        "print('all well'); print('2026 ERROR   webapp: no disk'); print('ValueError: no'); print('half', end='')"
    )
    child.start()
    child.process.wait(20)
    assert child.trouble() == ["2026 ERROR   webapp: no disk", "ValueError: no"]
    assert child.trouble() == []


def test_a_leftover_is_ended_but_never_a_stranger(make):
    child = make("import time; time.sleep(60)")
    child.start()
    identity = child.identity
    assert not end_leftover(identity["pid"], identity["started"] - 100)
    assert psutil.pid_exists(identity["pid"])
    assert end_leftover(**identity)
    assert not psutil.pid_exists(identity["pid"])
