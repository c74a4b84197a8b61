"""The embedded PostgreSQL and Valkey keep what they were given, whatever happened to them."""

import os
import signal
import stat
import time

import psutil
import psycopg
import pytest
import redis

from webapp.local.postgres import EmbeddedPostgres
from webapp.local.valkey import EmbeddedValkey, port_free


@pytest.fixture
def short_path():
    """A folder whose path leaves room for a unix socket's name, open for the server's own user."""
    import shutil
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp(prefix="isentrope-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def postgres(short_path):
    server = EmbeddedPostgres(short_path / "postgres")
    yield server
    server.stop()


@pytest.fixture
def embedded_valkey(tmp_path):
    server = EmbeddedValkey(tmp_path / "valkey")
    yield server
    server.stop()


def test_postgres_finds_its_data_after_a_crash_and_a_reused_pid(postgres):
    url = postgres.start()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept (value int)")
        connection.execute("INSERT INTO kept VALUES (7)")
    pid_file = postgres.folder / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    _kill(int(lines[0]))
    # After a reboot the number in the file can be anybody's: here it is ours.
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")

    again = EmbeddedPostgres(postgres.folder)
    assert not again.running()
    assert again.start() == url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (7,)
    # Only the owner may open the socket, for the server asks for no password.
    sockets = list(postgres.folder.glob(".s.PGSQL.*[0-9]"))
    assert [stat.S_IMODE(path.stat().st_mode) for path in sockets] == [0o700]
    again.stop()
    assert not again.running()


def test_valkey_finds_its_data_after_a_stop(embedded_valkey):
    url = embedded_valkey.start()
    with redis.Redis.from_url(url) as client:
        client.set("kept", "7")
    embedded_valkey.stop()
    assert not embedded_valkey.running()
    assert embedded_valkey.start() == url
    with redis.Redis.from_url(url) as client:
        assert client.get("kept") == b"7"


def test_valkey_is_taken_over_from_a_launcher_that_was_killed(embedded_valkey):
    url = embedded_valkey.start()
    other = EmbeddedValkey(embedded_valkey.folder)
    assert other.running()
    assert other.start() == url
    other.stop()
    assert not embedded_valkey.running()


def test_valkey_asks_for_its_password(embedded_valkey):
    embedded_valkey.start()
    with (
        redis.Redis(port=embedded_valkey.port) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.get("kept")
    assert stat.S_IMODE((embedded_valkey.folder / "password").stat().st_mode) == 0o600


def test_valkey_moves_when_its_port_is_taken(embedded_valkey):
    import socket

    embedded_valkey.start()
    embedded_valkey.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", embedded_valkey.port))
        other.listen()
        taken = embedded_valkey.port
        assert not port_free(taken)
        embedded_valkey.start()
        assert embedded_valkey.port != taken


def _kill(pid: int) -> None:
    process = psutil.Process(pid)
    children = process.children(recursive=True)
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process, *children], timeout=10)
    time.sleep(0.1)
