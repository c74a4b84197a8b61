"""What holds for every page: headers, theme, error pages, health, logs."""

import json
import logging

import pytest
from django.test import Client


@pytest.fixture
def page(login, alice):
    return login(alice).get("/profile/")


def test_nothing_inline_and_no_other_host(page):
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    html = page.content.decode()
    assert "<style" not in html
    assert " style=" not in html
    assert " onclick=" not in html
    assert 'src="http' not in html
    assert page.headers["X-Frame-Options"] == "DENY"


def test_scripts_and_styles_exist(page, client):
    import re

    files = re.findall(r'(?:src|href)="(/static/[^"#]+)', page.content.decode())
    assert len(files) > 5
    for path in files:
        assert client.get(path).status_code == 200, path


def test_every_icon_used_is_in_the_sprite(settings):
    import re

    sprite = (settings.BASE_DIR / "webapp/static/vendor/icons.svg").read_text()
    have = set(re.findall(r'<symbol id="([^"]+)"', sprite))
    for template in (settings.BASE_DIR / "templates").rglob("*.html"):
        used = set(re.findall(r'{% icon "([^"]+)"', template.read_text()))
        assert used <= have, f"{template.name}: add {sorted(used - have)} to vendor/icons.svg"


def test_a_form_without_its_token_is_refused(alice):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(alice)
    answer = browser.post("/profile/theme/", {"theme": "dark"})
    assert answer.status_code == 403
    assert "reload the page" in answer.content.decode()


def test_not_found_says_what_to_do(login, alice):
    answer = login(alice).get("/there/is/nothing/")
    assert answer.status_code == 404
    assert "Go to runs" in answer.content.decode()


def test_refusals_name_the_role(login, alice):
    answer = login(alice).get("/users/")
    assert answer.status_code == 403
    assert "role admin" in answer.content.decode()


def test_unknown_hosts_are_refused(client, db):
    assert client.get("/accounts/login/", headers={"host": "evil.example"}).status_code == 400


def test_live_needs_no_database(client):
    assert client.get("/health/live").json() == {"status": "ok"}


@pytest.mark.django_db(transaction=True)
def test_ready_names_each_service_and_only_warns_without_a_worker(client):
    answer = client.get("/health/ready")
    assert answer.status_code == 200
    assert {name: entry["status"] for name, entry in answer.json().items()} == {
        "database": "ok",
        "redis": "ok",
        "worker": "warning",
    }


@pytest.mark.django_db(transaction=True)
def test_ready_sees_a_fresh_worker(client):
    from webapp.runs.models import Worker

    Worker.objects.create(name="here", host="here")
    assert client.get("/health/ready").json()["worker"]["status"] == "ok"


@pytest.mark.django_db(transaction=True)
def test_ready_fails_without_valkey(client, settings):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["redis"]["status"] == "error"
    assert answer.json()["database"]["status"] == "ok"


@pytest.mark.django_db(transaction=True)
def test_startup_is_done_when_migrated(client):
    assert client.get("/health/startup").json()["migrated"]["status"] == "ok"


def test_no_migration_is_missing(db):
    from django.core.management import call_command

    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_a_log_line_cannot_be_forged():
    from webapp.logs import JsonFormatter, TextFormatter

    record = logging.LogRecord("webapp", logging.INFO, "", 0, "user %s", ("eve\n2026 ERROR root: all lost",), None)
    assert "\n" not in TextFormatter().format(record)
    assert json.loads(JsonFormatter().format(record))["message"].startswith("user eve")
