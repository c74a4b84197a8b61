"""Early pytest plugin: says where PostgreSQL and Valkey of this session are, before Django reads its settings.

Starting them is left to the fixtures in conftest.py, so that a run of trainer tests alone starts nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

from webapp.local.postgres import DATABASE, EmbeddedPostgres
from webapp.local.valkey import EmbeddedValkey

# Short: a unix socket's path has at most 107 bytes.
HOME = Path(tempfile.mkdtemp(prefix="isentrope-test-")).resolve()
HOME.chmod(0o755)
EMBED_POSTGRES = "DATABASE_URL" not in os.environ
EMBED_VALKEY = "REDIS_URL" not in os.environ

os.environ["ISENTROPE_HOME"] = str(HOME)
os.environ.setdefault("ISENTROPE_DATABASE_POOL", "0")
if EMBED_POSTGRES:
    os.environ["DATABASE_URL"] = f"postgresql://postgres@/{DATABASE}?host={quote(str(HOME / 'postgres'), safe='')}"
if EMBED_VALKEY:
    valkey = EmbeddedValkey(HOME / "valkey", volatile=True)
    os.environ["REDIS_URL"] = valkey.url

_started: list = []


def start_postgres() -> None:
    if EMBED_POSTGRES:
        server = EmbeddedPostgres(HOME / "postgres", volatile=True)
        assert server.start() == os.environ["DATABASE_URL"], "the socket is not where the settings expect it"
        _started.append(server)


def start_valkey() -> None:
    if EMBED_VALKEY:
        valkey.start()
        _started.append(valkey)


def pytest_unconfigure() -> None:
    for server in _started:
        server.stop()
    shutil.rmtree(HOME, ignore_errors=True)
