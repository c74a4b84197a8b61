"""Early pytest plugin: says where PostgreSQL and Valkey of this session are, before Django reads its settings.

Starting them is left to the fixtures in conftest.py, so that a run of trainer tests alone starts nothing. Each worker
of pytest-xdist (-n) is a session with services of its own. All of them compute in one thread: what is compared bit for
bit does not depend on the machine's cores, and several workers do not quarrel over them.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest

from webapp.local.postgres import DATABASE, EmbeddedPostgres
from webapp.local.valkey import EmbeddedValkey

# Short: a unix socket's path has at most 107 bytes.
HOME = Path(tempfile.mkdtemp(prefix="isentrope-test-")).resolve()
HOME.chmod(0o755)
# A worker inherits what its controller sets below; those are nobody's own services.
GIVEN = os.environ.setdefault("PYTEST_GIVEN", " ".join({"DATABASE_URL", "REDIS_URL"} & os.environ.keys())).split()
EMBED_POSTGRES = "DATABASE_URL" not in GIVEN
EMBED_VALKEY = "REDIS_URL" not in GIVEN

os.environ["ISENTROPE_HOME"] = str(HOME)
for library in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(library, "1")
os.environ.setdefault("ISENTROPE_DATABASE_POOL", "0")
if EMBED_POSTGRES:
    os.environ["DATABASE_URL"] = f"postgresql://postgres@/{DATABASE}?host={quote(str(HOME / 'postgres'), safe='')}"
if EMBED_VALKEY:
    valkey = EmbeddedValkey(HOME / "valkey", volatile=True)
    os.environ["REDIS_URL"] = valkey.url
    # Minutes may pass until the first test that needs it, and other workers look for ports, too.
    _port = socket.socket()
    _port.bind(("127.0.0.1", valkey.port))

_started: list = []


def start_postgres() -> None:
    if EMBED_POSTGRES:
        server = EmbeddedPostgres(HOME / "postgres", volatile=True)
        assert server.start() == os.environ["DATABASE_URL"], "the socket is not where the settings expect it"
        _started.append(server)


def start_valkey() -> None:
    if EMBED_VALKEY:
        _port.close()
        assert valkey.start() == os.environ["REDIS_URL"], "its port was taken"
        _started.append(valkey)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what the tests would spoil for one another: they empty Valkey."""
    if not EMBED_VALKEY and config.getoption("numprocesses", None):
        raise pytest.UsageError("Several workers cannot share the server of REDIS_URL: unset it, or run with -n0.")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Stop the services once the fixtures are gone. A worker that has reported its end is killed ten seconds later."""
    while _started:
        _started.pop().stop()
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)  # of a session that only asked for help, or a controller
