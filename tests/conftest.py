"""Real services and a familiar cast: Alice owns runs, Bob is on the team, Charlie only looks, Ada is the admin."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from webapp.local import testing as services

# These take a minute or more each. Were one of them the last to start, the other workers would wait for it.
FIRST = (
    "e2e/test_full_path.py",
    "trainer/test_ahead.py",
    "trainer/vllm",
    "trainer/server",
    "trainer/test_every_preset.py",
    "e2e",
    "webapp/local",
    "trainer/kernels_triton",
    "trainer/memory",
    "trainer/test_",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long; otherwise nothing changes places."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(here).as_posix()
        return next((n for n, prefix in enumerate(FIRST) if path.startswith(prefix)), len(FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def valkey_server() -> str:
    """One Valkey for the session; its URL."""
    services.start_valkey()
    return os.environ["REDIS_URL"]


@pytest.fixture(scope="session")
def django_db_modify_db_settings(valkey_server) -> None:
    """PostgreSQL (and Valkey, which sessions, doorbells and sockets want) run before the test database is made."""
    services.start_postgres()


@pytest.fixture
def valkey(valkey_server):
    """A client of the session's Valkey."""
    import redis

    client = redis.Redis.from_url(valkey_server)
    yield client
    client.close()


@pytest.fixture(autouse=True)
def _empty_valkey(request):
    """Every test that has a database starts with an empty Valkey."""
    yield
    if services._started and (
        "db" in request.fixturenames
        or "valkey_server" in request.fixturenames
        or request.node.get_closest_marker("django_db")
    ):
        import redis

        with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
            client.flushdb()


@pytest.fixture(autouse=True)
def _own_world(settings, tmp_path):
    """Each test writes below its own folder, and passwords are not hashed a million times."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.RUNS_ROOT = tmp_path / "runs"
    settings.DATASETS_ROOT = tmp_path / "datasets"
    settings.MODELS_ROOT = tmp_path / "models"
    settings.MODEL_ROOTS = [settings.MODELS_ROOT]
    settings.DATASET_ROOTS = [settings.DATASETS_ROOT]


def _user(username: str, role: str):
    from webapp.accounts.models import User

    return User.objects.create_user(username, password=f"{username}-pass-phrase", role=role)


@pytest.fixture
def alice(db):
    """A member; the runs in the tests are hers."""
    return _user("alice", "member")


@pytest.fixture
def bob(db):
    """Another member of the same lab."""
    return _user("bob", "member")


@pytest.fixture
def charlie(db):
    """A viewer: may look, may not launch."""
    return _user("charlie", "viewer")


@pytest.fixture
def admin_user(db):
    return _user("ada", "admin")


@pytest.fixture
def login(client):
    """`login(alice)` returns a client signed in as her."""

    def sign_in(user):
        client.force_login(user, backend="allauth.account.auth_backends.AuthenticationBackend")
        return client

    return sign_in
