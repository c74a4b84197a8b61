"""The site listens beyond this machine only where that is safe."""

import secrets

import pytest

from webapp.local.safety import refusals


@pytest.fixture
def safe(settings, admin_user):
    settings.DEBUG = False
    settings.SECRET_KEY = secrets.token_urlsafe(48)


def test_a_safe_site_listens_anywhere(safe):
    assert refusals("0.0.0.0") == []


def test_debug_is_refused(safe, settings):
    settings.DEBUG = True
    assert "ISENTROPE_DEBUG" in refusals("0.0.0.0")[0]


@pytest.mark.parametrize("key", ["short", "a" * 60, "django-insecure-" + "abcdefghijklmnopqrst" * 3, "changeme" * 8])
def test_weak_keys_are_refused(safe, settings, key):
    settings.SECRET_KEY = key
    assert "ISENTROPE_SECRET_KEY" in refusals("192.168.0.7")[0]


def test_no_admin_is_refused(safe, admin_user):
    admin_user.is_active = False
    admin_user.save()
    assert "no admin" in refusals("::")[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_alone_may_do_as_it_likes(db, settings, host):
    settings.DEBUG, settings.SECRET_KEY = True, "x"
    assert refusals(host) == []
