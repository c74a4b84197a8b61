"""Roles decide what a person may do, on every page."""

import pytest
from django.urls import reverse

from webapp.accounts.models import ABILITIES, RANK, Role, User


@pytest.mark.parametrize("ability", ABILITIES)
def test_a_higher_role_may_do_all_a_lower_one_may(ability):
    allowed = [User(username="x", role=role).can(ability) for role in sorted(Role, key=RANK.__getitem__)]
    assert allowed == sorted(allowed)
    assert allowed[-1]


def test_each_role_by_name():
    may = {role: {ability for ability in ABILITIES if User(username="x", role=role).can(ability)} for role in Role}
    assert may["viewer"] == {"view"}
    assert may["member"] == {"view", "launch", "upload"}
    assert may["maintainer"] == {"view", "launch", "upload", "manage", "catalog"}
    assert may["admin"] == set(ABILITIES)


def test_people_who_left_may_nothing():
    assert not User(username="x", role="admin", is_active=False).can("view")


def test_an_unknown_ability_is_an_error_not_a_no():
    with pytest.raises(KeyError):
        User(username="x", role="admin").can("lanch")


def test_only_admins_enter_djangos_admin(client, login, alice, admin_user):
    assert client.get("/admin/").status_code == 302
    assert login(alice).get("/admin/", follow=True).status_code == 403
    assert login(admin_user).get("/admin/").status_code == 200


def test_a_lost_role_closes_djangos_admin(login, admin_user):
    admin_user.role = Role.MEMBER
    admin_user.save(update_fields=["role"])
    assert not User.objects.get(pk=admin_user.pk).is_superuser
    assert login(admin_user).get("/admin/", follow=True).status_code == 403


@pytest.mark.parametrize("name", ["accounts:profile", "accounts:users", "admin:index", "mfa_index"])
def test_strangers_are_sent_to_sign_in(client, db, name):
    answer = client.get(reverse(name))
    assert answer.status_code == 302
    assert "/login/" in answer.headers["Location"]
