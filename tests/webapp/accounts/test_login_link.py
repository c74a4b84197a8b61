"""One-time login links sign in once, and only when a person asks."""

from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from webapp.accounts.models import LoginLink
from webapp.accounts.services import login_link_create


@pytest.fixture
def link(alice) -> str:
    return login_link_create(user=alice, next_url="/profile/").removeprefix("http://127.0.0.1:8000")


def test_it_signs_in_and_goes_on(client, link, alice):
    assert client.post(link, secure=False).headers["Location"] == "/profile/"
    assert client.get("/profile/").context["user"] == alice


def test_looking_uses_nothing_up(client, link):
    for _ in range(3):
        assert b"alice" in client.get(link).content
    assert client.get("/profile/").status_code == 302
    assert client.post(link).status_code == 302


def test_it_works_once(client, link):
    client.post(link)
    client.logout()
    answer = client.post(link)
    assert answer.status_code == 410
    assert client.get("/profile/").status_code == 302


def test_it_expires(client, link):
    LoginLink.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert client.post(link).status_code == 410


def test_it_refuses_people_who_left(client, link, alice):
    alice.is_active = False
    alice.save()
    assert client.post(link).status_code == 410


def test_it_never_leads_to_another_site(client, alice):
    link = login_link_create(user=alice, next_url="https://evil.example/")
    assert client.post(link.removeprefix("http://127.0.0.1:8000")).headers["Location"] == "/"


def test_the_database_keeps_no_token(link):
    token = link.split("/")[2]
    assert token not in str(LoginLink.objects.values().get())


def test_unknown_token(client, db):
    answer = client.get(reverse("accounts:login_link", args=["nonsense"]))
    assert answer.status_code == 410
    assert b"login_link" in answer.content
