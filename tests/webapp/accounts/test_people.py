"""The people page of admins."""

import re

import pytest
from auditlog.models import LogEntry

from webapp.accounts.models import LoginLink, User


@pytest.fixture
def admin(login, admin_user):
    return login(admin_user)


def test_a_new_person_gets_a_link_that_signs_in(admin, client):
    page = admin.post("/users/new/", {"username": "dana", "email": "", "role": "member"}).content.decode()
    link = re.search(r"http://127\.0\.0\.1:8000(/sign-in/[^\"]+)", page).group(1)
    admin.logout()
    assert client.post(link).status_code == 302
    assert client.get("/profile/").context["user"].username == "dana"
    assert User.objects.get(username="dana").role == "member"


def test_a_name_that_exists_is_refused_on_the_form(admin, bob):
    answer = admin.post("/users/new/", {"username": "bob", "role": "member"})
    assert answer.status_code == 422
    assert "already exists" in answer.content.decode()
    assert not LoginLink.objects.exists()


def test_a_role_is_changed_and_written_down(admin, admin_user, bob):
    admin.post(f"/users/{bob.pk}/role/", {"role": "maintainer", "active": "on"})
    bob.refresh_from_db()
    assert bob.role == "maintainer"
    entry = LogEntry.objects.get_for_object(bob).first()
    assert entry.actor == admin_user
    assert entry.changes["role"] == ["member", "maintainer"]


def test_somebody_who_leaves_is_signed_out_at_once(admin, bob):
    from django.test import Client

    browser = Client()
    browser.force_login(bob)
    assert browser.get("/profile/").status_code == 200
    admin.post(f"/users/{bob.pk}/role/", {"role": "member"})
    assert browser.get("/profile/").status_code == 302


def test_the_last_admin_stays(admin, admin_user):
    page = admin.post(f"/users/{admin_user.pk}/role/", {"role": "member", "active": "on"}, follow=True)
    admin_user.refresh_from_db()
    assert admin_user.role == "admin"
    assert "only admin" in page.content.decode()


def test_an_unknown_role_changes_nothing(admin, bob):
    page = admin.post(f"/users/{bob.pk}/role/", {"role": "god", "active": "on"}, follow=True)
    bob.refresh_from_db()
    assert bob.role == "member"
    assert "choose one of" in page.content.decode()


@pytest.mark.parametrize("path", ["/users/new/", "/users/{}/role/", "/users/{}/link/"])
def test_others_may_not(login, alice, bob, path):
    assert login(alice).post(path.format(bob.pk), {"username": "eve", "role": "admin"}).status_code == 403
    assert not User.objects.filter(role="admin").exists()
    assert not LoginLink.objects.exists()


@pytest.mark.parametrize("path", ["/users/new/", "/users/1/role/", "/users/1/link/", "/profile/theme/"])
def test_looking_changes_nothing(admin, path):
    assert admin.get(path).status_code == 405


def test_the_page_with_a_link_is_not_kept(admin, bob):
    assert admin.post(f"/users/{bob.pk}/link/").headers["Cache-Control"] == "no-store"
