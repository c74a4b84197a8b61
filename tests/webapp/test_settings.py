"""Settings read the environment and say what is wrong with it."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from webapp import settings


def test_a_secret_may_come_from_a_file(monkeypatch, tmp_path):
    (tmp_path / "key").write_text("from a file\n")
    monkeypatch.setenv("SOME_KEY_FILE", str(tmp_path / "key"))
    assert settings.env("SOME_KEY") == "from a file"


@pytest.mark.parametrize(
    ("reader", "value", "said"),
    [
        (lambda: settings.env_bool("ODD", False), "maybe", "neither true nor false"),
        (lambda: settings.env_int("ODD", 1), "many", "not a whole number"),
        (lambda: settings.database("mysql://x"), "", "only PostgreSQL"),
    ],
)
def test_a_bad_value_is_named_with_its_fix(monkeypatch, reader, value, said):
    monkeypatch.setenv("ODD", value)
    with pytest.raises(ImproperlyConfigured, match=said):
        reader()


def test_a_missing_secret_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_KEY_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(ImproperlyConfigured, match="SOME_KEY_FILE"):
        settings.env("SOME_KEY")


def test_a_database_url_becomes_djangos_settings():
    got = settings.database("postgresql://me:p%40ss@db.example:5433/lab?sslmode=require")
    assert (got["USER"], got["PASSWORD"], got["HOST"], got["PORT"], got["NAME"]) == (
        "me",
        "p@ss",
        "db.example",
        "5433",
        "lab",
    )
    assert got["OPTIONS"]["sslmode"] == "require"


def test_the_secret_key_is_made_once_and_kept_private(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "ISENTROPE_HOME", tmp_path / "home")
    monkeypatch.delenv("ISENTROPE_SECRET_KEY", raising=False)
    key = settings.secret_key()
    assert settings.secret_key() == key
    assert len(key) > 40
    assert (tmp_path / "home" / "secret_key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["secret_key"]
